"""Isolated processes: results, failures, memory of their own, and no orphans."""

from __future__ import annotations

import _multiprocessing
import multiprocessing
import multiprocessing.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

from qlab.support.disk.scratch import Scratch
from qlab.support.errors import UserError
from qlab.support.processes.process import Isolated, Overdue, peak_bytes, run_isolated
from tests.living import isolated, lives

held: list[object] = []  # by a child, to its end


def hold(megabytes: int) -> int:
    return len(bytearray(os.urandom(1 << 20) * megabytes)) >> 20


def fail_with(message: str, user: bool) -> None:
    print("a line of its log")
    raise UserError(message) if user else ValueError(message)


def die() -> None:
    os._exit(7)


def sleep_long() -> None:
    time.sleep(600)


def test_a_result_comes_back_with_its_own_peak() -> None:
    ballast = bytearray(os.urandom(1 << 20) * 400)  # the parent's memory must not show in the child's peak
    small, large = run_isolated(hold, 1), run_isolated(hold, 150)
    assert (small.value, large.value) == (1, 150)
    assert small.peak_bytes < peak_bytes() - len(ballast) // 2
    assert large.peak_bytes - small.peak_bytes > 140e6


def variable() -> str | None:
    return os.environ.get("QLAB_TEST_VARIABLE")


def test_a_child_has_the_variables_of_its_parent_as_they_are_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLAB_TEST_VARIABLE", "now")
    assert run_isolated(variable).value == "now"
    monkeypatch.delenv("QLAB_TEST_VARIABLE")
    assert run_isolated(variable).value is None


def keeps_a_folder() -> str:
    """A temporary folder that nobody removes before the process ends."""
    folder = Scratch()
    held.append(folder)
    return str(folder.path)


def test_a_child_s_temporary_folders_go_with_it() -> None:
    assert not Path(run_isolated(keeps_a_folder).value).exists()


def test_failures_say_what_happened() -> None:
    with pytest.raises(UserError, match=r"^use a divisor$"):
        run_isolated(fail_with, "use a divisor", True)
    with pytest.raises(RuntimeError, match=r"fail_with failed: ValueError: broken\n(.|\n)*a line of its log"):
        run_isolated(fail_with, "broken", False)
    with pytest.raises(RuntimeError, match="exit code 7"):
        run_isolated(die)


def count(note: str) -> Iterator[tuple[int, int]]:
    """1, 2, 3, each with the process that counts; at the end the file `note` says so."""
    try:
        yield from ((number, os.getpid()) for number in range(1, 4))
    finally:
        Path(note).write_text("closed")


def test_a_generator_lives_in_one_process_from_value_to_value_and_is_closed(tmp_path: Path) -> None:
    with Isolated(count, str(tmp_path / "note")) as process:
        first, second = process.next(60), process.next(60)
        assert (first[0], second[0]) == (1, 2)
        assert first[1] == second[1] != os.getpid()
        assert not (tmp_path / "note").exists()
    assert (tmp_path / "note").read_text() == "closed"
    assert not psutil.pid_exists(first[1])


def test_a_generator_that_has_no_more_says_so(tmp_path: Path) -> None:
    with Isolated(count, str(tmp_path / "note"), name="counting") as process:
        assert [process.next(60)[0] for _ in range(3)] == [1, 2, 3]
        with pytest.raises(RuntimeError, match="counting failed: it has come to its end"):
            process.next(60)


def leaves_slowly() -> str:
    """The name of a semaphore that this process gives back at its end, after half a second."""
    lock = multiprocessing.get_context("spawn").Lock()
    held.append(lock)
    multiprocessing.util.Finalize(None, time.sleep, args=(0.5,), exitpriority=10)
    return str(lock._semlock.name)


def test_a_child_gives_back_its_semaphores() -> None:
    name = run_isolated(leaves_slowly).value
    with pytest.raises(FileNotFoundError):
        _multiprocessing.sem_unlink(name)


def test_what_takes_too_long_is_killed() -> None:
    started, before = time.monotonic(), set(isolated())
    with pytest.raises(Overdue, match="sleep_long failed: not done within 4 s"):
        run_isolated(sleep_long, limit=4)
    assert time.monotonic() - started < 60
    assert not set(isolated()) - before


def starts_a_deaf_server(note: str, keeper: Sequence[str], dies: bool) -> Iterator[None]:
    """A command that minds no SIGTERM, under a keeper, as servers are, or under none; it never becomes ready."""
    command = (
        "import os, pathlib, signal, sys, time; signal.signal(15, signal.SIG_IGN); pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))"
    )
    own = [sys.executable, "-c", f"{command}; time.sleep(600)", note]
    held.append(subprocess.Popen([*keeper, *own], stdin=subprocess.PIPE, start_new_session=True))
    wait_for(lambda: Path(note).exists() and Path(note).read_text(), 60)
    if dies:
        os._exit(7)
    time.sleep(600)
    yield


@pytest.mark.parametrize("dies", [False, True])
@pytest.mark.parametrize("keeper", [(sys.executable, "-m", "qlab.serve.supervisor"), ()])
def test_what_a_child_has_started_is_gone_when_it_is_closed(keeper: Sequence[str], dies: bool, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with Isolated(starts_a_deaf_server, str(note), keeper, dies) as process:
        assert wait_for(lambda: note.exists() and note.read_text(), 60)
        with pytest.raises(RuntimeError, match="exit code 7" if dies else "not done within"):
            process.next(60 if dies else 0.1)
    assert not psutil.pid_exists(int(note.read_text()))


def computes_long_after_the_first() -> Iterator[int]:
    yield 1
    time.sleep(600)
    yield 2


def test_who_is_interrupted_does_not_wait_for_a_child_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Isolated(computes_long_after_the_first)
    process.next(60)
    with monkeypatch.context() as patch:
        patch.setattr(process, "_pipe", Interrupted(process._pipe))
        with pytest.raises(KeyboardInterrupt):
            process.next(60)
    started = time.monotonic()
    process.close()
    assert time.monotonic() - started < 60


class Interrupted:
    """A pipe on which Ctrl-C comes while it is waited for."""

    def __init__(self, pipe: Connection) -> None:
        self.send = pipe.send

    def poll(self, limit: float) -> bool:
        raise KeyboardInterrupt


def test_the_child_dies_with_its_parent() -> None:
    code = "from tests.support.processes.test_process import *; run_isolated(sleep_long)"
    parent = subprocess.Popen([sys.executable, "-c", f"if __name__ == '__main__':\n    {code}"])
    try:
        children = wait_for(lambda: isolated(parent.pid), 120)
        time.sleep(3)  # let it reach the function
    finally:
        parent.kill()
        parent.wait()
    assert wait_for(lambda: not any(map(lives, children)), 30)


def wait_for(condition, seconds):  # type: ignore[no-untyped-def]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("did not happen in time")


def a_process_within() -> int:
    return run_isolated(os.getpid).value


def test_an_isolated_process_may_have_one_of_its_own() -> None:
    """As where a library, in a process of its own, loads a tokenizer, which is tried in another."""
    assert run_isolated(a_process_within).value not in (0, os.getpid())
