"""Killed, interrupted, or out of disk at drawn moments: what is left is the old or the new, and the same command goes on to the same bytes.

QLAB_KILL_ROUNDS: how many moments of each kind, for each command (`make kill`); QLAB_KILL_SEED: which ones.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlab.support.disk.scratch import PREFIX
from tests.kill.commands import TINY, Command, commands, succeed
from tests.kill.killing import FULL, SIGNALS, Moment, Run, filled, left, small_disk

ROUNDS = int(os.environ.get("QLAB_KILL_ROUNDS", "0"))
SEED = os.environ.get("QLAB_KILL_SEED", "0")
ORDERLY = ("TERM", "INT")  # after these nothing at all may stay but what the same command goes on from
KINDS = {  # where no round of all is asked for: so few that `make test` stays short
    "quantize": ("KILL", FULL), "evaluate": ("INT",), "bench": ("TERM",), "finetune": ("KILL",), "release": ("KILL",),
    "run": ("INT",),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    succeed("quantize", "--recipe", "nf4", "--recipe", "q4_k_m", *TINY, "--out", str(folder / "out"))
    trained = ["--text", "python-reference", *TINY, "--steps", "2", "--out", str(folder / "adapter")]
    succeed("finetune", str(folder / "out" / "nf4"), *trained)
    return folder


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name, as the usual ones have it: kernels put their sockets among the temporary files."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="qlab-") as folder:
        yield Path(folder)


@pytest.mark.parametrize("name", KINDS)
def test_stopped_at_any_moment_it_goes_on(name: str, base: Path, short: Path, tmp_path: Path) -> None:
    (command,) = (each for each in commands(base) if each.name == name)
    before = tmp_path / "before"
    before.mkdir()
    command.before(before)
    whole = short / "whole"
    shutil.copytree(before, whole, symlinks=True)
    run = Run(command.words, whole, tmp_path / "whole-logs", true=truly(command))
    events = run.events()
    assert run.wait() == 0, run.printed
    new, paths = command.state(whole), tree(whole)
    generator = random.Random(f"{SEED} {name}")
    kinds = [*SIGNALS, FULL] * ROUNDS or KINDS[name]
    with small_disk(short / "disk") as mounted:
        folder = short / "disk" / "work"
        shutil.copytree(before, folder, symlinks=True)
        for kind in kinds:
            if kind == FULL and not mounted:
                continue  # named at the end
            moment = Moment.drawn(events, generator)
            if done(command, folder, new):
                renew(folder, before)
            while not stop_once(command, folder, tmp_path, kind, moment, new):  # it was faster than the one whose events were counted
                assert moment != moment.earlier(), "it ends before its first event"
                moment = moment.earlier()
                renew(folder, before)
        ended = done(command, folder, new)
        if not ended:
            run = Run(command.words, folder, tmp_path / "logs", true=True)
            assert run.wait() == 0, run.printed
        assert left(folder) == []
        assert command.result(command.state(folder)) == command.result(new)
        found = [path for path in tree(folder) if not ended or path in paths or not temporary(path)]
        assert found == paths
    if FULL in kinds and not mounted:
        pytest.skip("no small disk to fill: this user may not mount a tmpfs. The other moments were tried and held")


def truly(command: Command) -> bool:
    """Whether what is stopped is started as users start it, else as a copy (tests/starting.py). What goes on in the end always is; so are
    a run, whose kernels are started anew in any case, and a release."""
    return ROUNDS > 0 or command.name in ("release", "run")


def done(command: Command, folder: Path, new: Any) -> bool:
    """Whether it was stopped when all was done: the same command would refuse, or be another attempt, which releases count."""
    return command.finished(folder) or bool(command.state(folder) == new)


def renew(folder: Path, before: Path) -> None:
    """Begin again with what lay there before the command."""
    shutil.rmtree(folder)
    shutil.copytree(before, folder, symlinks=True)


def stop_once(command: Command, folder: Path, tmp_path: Path, kind: str, moment: Moment, new: Any) -> bool:
    """Stop the command at the moment, and see that each part of what lies there then is as before or as it shall be.

    False where it had ended before.
    """
    old, lay = command.state(folder), tree(folder)
    run = Run(command.words, folder, tmp_path / "logs", true=truly(command))
    print(f"{command.name}: {kind} after {moment}, seed {SEED}")
    if not moment.reached(run):
        assert run.wait() == 0, run.printed
        return False
    if kind == FULL:
        with filled(folder.parent):
            code = run.wait()
        if "the disk is full" not in run.printed:  # all was written when it was filled
            assert code == 0, run.printed
            assert command.result(command.state(folder)) == command.result(new)
        assert code in ((1, 2) if command.writes else (0, 1)) or command.state(folder) == new, run.printed
        assert "Traceback" not in run.printed, run.printed
        assert "should have said why" not in run.printed, run.printed
    else:
        run.process.send_signal(SIGNALS[kind])
        code = run.wait()
        if kind in ORDERLY and "interrupted; nothing is left running" in run.printed:
            assert code in (130, -SIGNALS["INT"]), run.printed  # Python ends itself by the signal where it met code that is made of text
        elif kind in ORDERLY:  # it came when all was done, and Python itself was ending
            assert code in (0, -SIGNALS[kind]), run.printed
            assert command.result(command.state(folder)) == command.result(new)
        if kind in ORDERLY:
            assert "Traceback" not in run.printed, run.printed
    assert left(folder, run.process.pid) == []
    if kind != "KILL":
        assert [
            path for path in tree(folder) if PREFIX in path and path not in lay
        ] == []  # an earlier one's goes when this one gets so far
    check_old_or_new(command.state(folder), old, new)
    return True


def check_old_or_new(found: Any, old: Any, new: Any) -> None:
    """Rows were added all or none; of anything else each part is the old or the new one."""
    if isinstance(found, list):
        assert found[: len(old)] == old
        assert len(found) - len(old) in (0, sum(row[0] == new[-1][0] for row in new))
        return
    for part in {*found, *old, *new}:
        assert found.get(part) in (old.get(part), new.get(part)), part


def temporary(path: str) -> bool:
    """Whether it lies in a hidden folder: who is killed when all is done, and before it has tidied, leaves that to the next command."""
    return any(part.startswith(".") for part in Path(path).parts)


def tree(folder: Path) -> list[str]:
    """All names below `folder`, temporary files among them."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
