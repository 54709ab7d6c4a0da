"""Nothing of a user's is replaced; what qlab made is, once the new one is whole; one process at a time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qlab.artifacts.artifact import Artifact
from qlab.artifacts.manifest import COST, MANIFEST
from qlab.artifacts.placing import check_place, put
from qlab.support.disk.lock import locked
from qlab.support.errors import UserError

INPUTS = {"model": "m", "recipe": {}, "calibration": {}, "versions": {}, "device": "cpu"}


def artifact(folder: Path, text: str = "weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(text)
    (folder / COST).write_text(json.dumps({"seconds": 1.0, "peak_bytes": 1}))
    (folder / MANIFEST).write_text(json.dumps({"inputs": INPUTS, "files": ["model.safetensors"]}))
    return folder


def occupied(folder: Path, how: str) -> None:
    folder.parent.mkdir()
    if how == "file":
        folder.write_text("mine")
    elif how == "link":
        artifact(folder.parent / "other")
        folder.symlink_to("other")
    elif how == "foreign":
        folder.mkdir()
        (folder / "thesis.txt").write_text("mine")
    else:
        artifact(folder)
        (folder / {"added": "thesis.txt", "damaged": MANIFEST, "deep": MANIFEST}[how]).write_text(
            "[" * 100_000 if how == "deep" else "mine"
        )


@pytest.mark.parametrize("how", ["file", "link", "foreign", "added", "damaged", "deep"])
def test_what_qlab_did_not_make_stays(how: str, tmp_path: Path) -> None:
    folder, model, made = tmp_path / "out/nf4", tmp_path / "model", artifact(tmp_path / "made")
    model.mkdir()
    occupied(folder, how)
    for attempt in (lambda: check_place(folder, model), lambda: put(made, folder)):
        with pytest.raises(UserError, match="nf4"):
            attempt()
    assert os.path.lexists(folder)
    assert made.exists()


@pytest.mark.parametrize("place", ["model", "model/nf4", "."])
def test_the_model_that_is_read_is_not_written_to(place: str, tmp_path: Path) -> None:
    model = artifact(tmp_path / "model")
    with pytest.raises(UserError, match="the model that is read"):
        check_place(tmp_path / place, model)
    check_place(tmp_path / "nf4", model)


def test_own_artifacts_are_replaced(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "nf4", "old")
    put(artifact(tmp_path / "made", "new"), folder)
    assert (folder / "model.safetensors").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["nf4"]


@pytest.mark.parametrize("able", [True, False])
def test_killed_anywhere_while_it_replaces_the_old_or_the_new_is_there(able: bool, tmp_path: Path) -> None:
    """Killed at the n-th call that changes the disk, for each n; on a disk that cannot exchange, the old one may stand aside."""
    for number in range(12):
        place = tmp_path / str(number)
        folder = artifact(place / "nf4", "old")
        made = artifact(place / "made", "new")
        ended = subprocess.run([sys.executable, "-c", KILLED, str(made), str(folder), str(number), str(able)]).returncode
        found = [path for path in (folder, place / ".replaced-nf4") if path.exists()]
        assert (found[0] / "model.safetensors").read_text() in ("old", "new")
        assert Artifact.open(found[0]) is not None
        assert not able or found == [folder]
        shutil.rmtree(made, ignore_errors=True)
        put(artifact(made, "new"), folder)
        assert (folder / "model.safetensors").read_text() == "new"
        assert [path.name for path in place.iterdir()] == ["nf4"]
        if not ended:
            break
    assert ended == 0
    assert number > 2


# What a process does that is killed at its n-th change of the disk.
KILLED = """
import os, pathlib, shutil, signal, sys
from qlab.artifacts import placing
made, folder, left, able = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "True"
def counted(do):
    def call(*arguments, **options):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return do(*arguments, **options)
    return call
exchange = placing.exchange
placing.exchange = counted(lambda one, other: able and exchange(one, other))
os.rename, os.unlink, os.rmdir, os.mkdir = map(counted, (os.rename, os.unlink, os.rmdir, os.mkdir))
placing.put(made, folder)
"""


def test_the_second_is_told_who_works_there_and_the_dead_hold_nothing(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    code = "import sys, pathlib, time; from qlab.support.disk.lock import locked\n"
    code += "with locked(pathlib.Path(sys.argv[1]), 'x'):\n    print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE) as first:
        assert first.stdout
        first.stdout.readline()
        with pytest.raises(UserError, match=rf"out is being worked on by process {first.pid} on .* since 20"), locked(file, "out"):
            pass
        first.kill()
        first.wait()
    assert file.exists()
    with locked(file, "out"):
        pass
    assert not file.exists()
