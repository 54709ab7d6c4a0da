"""A lock on a folder: who works there is named, the dead hold nothing, and nobody's file is taken for a lock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qlab.support.disk import lock
from qlab.support.disk.lock import locked
from qlab.support.errors import UserError

WORKS = """
import pathlib, sys
from qlab.support.disk.lock import locked
with locked(pathlib.Path(sys.argv[1]), "out"):
    print(flush=True)
    input()
"""


@contextmanager
def worker(file: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it reads a line."""
    with subprocess.Popen([sys.executable, "-c", WORKS, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        process.kill()


def test_the_second_waits_says_for_whom_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ".lock"
    with worker(file) as first:
        asked = lock.fcntl.flock

        def let_go(descriptor: int, how: int) -> None:
            if how == lock.fcntl.LOCK_EX:  # the call that waits
                assert "waiting for process" in capsys.readouterr().err
                first.communicate("\n", timeout=120)
            asked(descriptor, how)

        monkeypatch.setattr(lock.fcntl, "flock", let_go)
        with locked(file, "out", wait=True):
            assert json.loads(file.read_text())["pid"] == os.getpid()
    assert not file.exists()


def test_a_killed_owner_leaves_a_note_and_no_lock(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    with (
        worker(file) as first,
        pytest.raises(UserError, match=f"out is being worked on by process {first.pid} on .* since 20"),
        locked(file, "out"),
    ):
        pass
    assert json.loads(file.read_text())["pid"] == first.pid
    with locked(file, "out"):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert not file.exists()


@pytest.mark.parametrize("kind", ["text", "JSON", "deep", "folder", "link", "broken link", "pipe"])
def test_what_is_no_lock_stays_as_it_is(kind: str, tmp_path: Path) -> None:
    file, other = tmp_path / ".lock", tmp_path / "mine"
    other.write_text("mine")
    texts = {"text": "my notes", "JSON": '{"pid": "none"}', "deep": "[" * 4000}
    if kind in texts:
        file.write_text(texts[kind])
    elif kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(other if kind == "link" else tmp_path / "none")
    with pytest.raises(UserError, match=r"cannot lock out: .*remove that file, or choose another folder"), locked(file, "out"):
        pass
    assert os.path.lexists(file)
    assert other.read_text() == "mine"
    assert kind not in texts or file.read_text() == texts[kind]


def test_an_empty_file_is_a_lock_whose_owner_found_no_room(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    with locked(tmp_path / ".lock", "out"):
        pass
    assert not (tmp_path / ".lock").exists()


def test_no_place_for_a_lock_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot lock out: No such file"), locked(tmp_path / "none" / ".lock", "out"):
        pass
