"""Nothing of a user's is replaced; what qlab made is, once the new one is whole; one process at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
