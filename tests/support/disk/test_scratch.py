"""Temporary folders: held while their process lives, swept once it is gone, and never another's."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from qlab.support.disk.scratch import PREFIX, Scratch, discard, sweep

HOLDS = "import sys, time, pathlib; from qlab.support.disk.scratch import Scratch\n"
HOLDS += "held = Scratch(pathlib.Path(sys.argv[1])); (held.path / 'file').touch(); print(flush=True); time.sleep(60)"


def test_it_goes_with_the_context_and_with_the_process(tmp_path: Path) -> None:
    with Scratch(tmp_path) as folder:
        (folder / "file").touch()
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o077 == 0  # nobody else reads it
    assert list(tmp_path.iterdir()) == []
    subprocess.run([sys.executable, "-c", HOLDS.replace("time.sleep(60)", ""), str(tmp_path)], check=True, capture_output=True)
    assert list(tmp_path.iterdir()) == []


def test_what_a_living_process_holds_stays_and_what_a_killed_one_left_goes(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        sweep(tmp_path)
        (held,) = tmp_path.iterdir()
        assert (held / "file").exists()
        other.kill()
    with Scratch(tmp_path) as mine:
        assert list(tmp_path.iterdir()) == [mine]


def test_what_is_not_its_own_is_not_swept(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / f"{PREFIX}link").symlink_to("precious")
    (tmp_path / f"{PREFIX}file").touch()
    sweep(tmp_path)
    assert (tmp_path / "precious" / "file").exists()
    assert len(list(tmp_path.iterdir())) == 3


def test_a_discarded_folder_is_gone_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").touch()
    code = "import os, pathlib, shutil, signal, sys; from qlab.support.disk import scratch\n"
    code += "shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\nscratch.discard(pathlib.Path(sys.argv[1]))"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "old")]).returncode == -9
    assert not (tmp_path / "old").exists()
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "other").mkdir()
    monkeypatch.setattr("qlab.support.disk.scratch.Scratch", no_room)
    discard(tmp_path / "other")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_in_the_middle_of_removing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove, calls = shutil.rmtree, iter([True])

    def interrupted(folder: Path, ignore_errors: bool) -> None:
        if next(calls, False):
            raise KeyboardInterrupt
        remove(folder, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    held = Scratch(tmp_path)
    (held.path / "file").touch()
    with pytest.raises(KeyboardInterrupt):
        held.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_is_about_to_sweep_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its making and its holding another process may have opened it, and removes it a moment later."""
    make, sweeping = tempfile.mkdtemp, list[int]()

    def made(prefix: str, dir: Path) -> str:
        folder = make(prefix=prefix, dir=dir)
        if not sweeping:
            sweeping.append(os.open(folder, os.O_RDONLY))
            fcntl.flock(sweeping[0], fcntl.LOCK_EX)
        return folder

    monkeypatch.setattr(tempfile, "mkdtemp", made)
    with Scratch(tmp_path) as mine:
        assert not os.path.samestat(os.stat(mine), os.fstat(sweeping[0]))
    os.close(sweeping[0])


def no_room(place: Path) -> Scratch:
    raise OSError(28, os.strerror(28), str(place))
