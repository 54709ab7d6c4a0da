"""Nothing of a user's is replaced; what qlab made is, once the new one is whole."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.artifacts import placing
from qlab.artifacts.artifact import Artifact
from qlab.artifacts.manifest import COST, MANIFEST
from qlab.artifacts.placing import check_place, put
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


def inside(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("loop/nf4", "is not a folder"),
        ("broken/nf4", "is not a folder"),
        ("file/nf4", "is not a folder"),
        ("pipe/nf4", "is not a folder"),
        ("pipe", "is a file"),
        ("loop", "is a link"),
        ("broken", "is a link"),
        ("to-model", "the model that is read"),
        ("to-model/nf4", "the model that is read"),
        ("other/../model/nf4", "the model that is read"),
        ("model/../..", "the model that is read"),
    ],
)
def test_whatever_stands_on_the_way_is_one_message(place: str, said: str, tmp_path: Path) -> None:
    model = artifact(tmp_path / "model")
    (tmp_path / "other").mkdir()
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    for name, target in (("loop", "loop"), ("broken", "none"), ("to-model", "model")):
        (tmp_path / name).symlink_to(target)
    before = inside(tmp_path / "model")
    with pytest.raises(UserError, match=said):
        check_place(tmp_path / place, model)
    assert inside(tmp_path / "model") == before


@pytest.mark.parametrize("out", ["../nf4", "../out/nf4", "../../nf4"])
def test_beside_the_model_is_not_in_it_though_it_is_named_from_within(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = artifact(tmp_path / "models/model")
    monkeypatch.chdir(model)
    check_place(Path(out), Path())


def test_a_disk_that_may_not_be_written_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, how: Path(path) != tmp_path and allowed(path, how))  # root may write anywhere
    with pytest.raises(UserError, match="cannot be written"):
        check_place(tmp_path / "out/nf4", artifact(tmp_path / "model"))


NAMES = st.sampled_from(["model.safetensors", "thesis.txt", ".hidden", "config.json", "a b", "é"])


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(NAMES, st.binary(max_size=4), max_size=4), st.sets(NAMES), st.booleans())
def test_a_folder_is_replaced_only_if_its_manifest_names_all_that_is_in_it(
    present: dict[str, bytes], listed: set[str], manifest: bool
) -> None:
    with tempfile.TemporaryDirectory() as work:
        folder, made = Path(work) / "out", artifact(Path(work) / "made", "new")
        folder.mkdir()
        for name, content in present.items():
            (folder / name).write_bytes(content)
        if manifest:
            (folder / MANIFEST).write_text(json.dumps({"inputs": INPUTS, "files": sorted(listed)}))
        before = inside(folder)
        own = set(present) <= listed if manifest else not present
        try:
            put(made, folder)
        except UserError:
            assert not own
            assert inside(folder) == before
        else:
            assert own
            assert inside(folder)["model.safetensors"] == b"new"


@pytest.mark.parametrize("able", [True, False])
def test_killed_anywhere_while_it_replaces_the_old_or_the_new_is_there(able: bool, tmp_path: Path) -> None:
    """Killed at the n-th call that changes the disk, for each n; on a disk that cannot exchange, the old one may stand aside."""
    for number in range(12):
        place = tmp_path / str(number)
        folder = artifact(place / "nf4", "old")
        made = artifact(place / "made", "new")
        process = multiprocessing.get_context("fork").Process(target=killed, args=(made, folder, number, able))
        process.start()
        process.join()
        ended = process.exitcode
        assert ended in (0, -signal.SIGKILL)
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


def killed(made: Path, folder: Path, left: int, able: bool) -> None:
    """Replace `folder`, and be killed at the change of the disk after so many."""
    exchange = placing.exchange

    def counted(do: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return do(*arguments, **options)

        return call

    placing.exchange = counted(lambda one, other: able and exchange(one, other))
    os.rename, os.unlink, os.rmdir, os.mkdir = map(counted, (os.rename, os.unlink, os.rmdir, os.mkdir))
    put(made, folder)
