"""Calls in a process with little memory and time: values, what exceeds the bounds, and that the next call finds a process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from qlab import ROOT
from qlab.support.processes import confined as module
from qlab.support.processes.confined import Exceeded, confined
from qlab.support.processes.process import peak_bytes


def doubled(value: str) -> tuple[str, int]:
    return value * 2, os.getpid()


def long(value: int, times: int) -> int:
    """So many bytes, or an endless computation, in one step of the interpreter."""
    return len(b"a" * value) if times == 1 else (9**times).bit_length()


def slept(seconds: float) -> None:
    time.sleep(seconds)


def broken(code: int) -> None:
    os._exit(code)


def test_one_process_does_all_calls() -> None:
    first, second = confined(doubled, "a", seconds=5), confined(doubled, "b" * 1000, seconds=5)
    assert (first[0], second[0]) == ("aa", "b" * 2000)
    assert first[1] == second[1] != os.getpid()


def test_calls_may_take_more_time_together_than_each_may_alone() -> None:
    """The limit is on all that the process has computed, and is raised for each call."""
    process = confined(doubled, "a", seconds=1)[1]
    while sum(psutil.Process(process).cpu_times()[:2]) < 6:
        confined(long, 1, 100_000, seconds=2)
    assert confined(doubled, "a", seconds=1)[1] == process


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        (long, (3 << 30, 1), "asked for more than 2 GiB of memory"),
        (long, (1, 10**9), "was not done in 2 seconds of computing"),
        (broken, (7,), r"broke the process that it ran in \(7\)"),
    ],
)
def test_what_exceeds_the_bounds_is_said_and_the_next_call_finds_a_process(function: Any, arguments: tuple[Any, ...], said: str) -> None:
    before = peak_bytes()
    with pytest.raises(Exceeded, match=said):
        confined(function, *arguments, seconds=2)
    assert peak_bytes() - before < 50e6
    assert confined(doubled, "a", seconds=2)[0] == "aa"


def test_a_script_without_a_guard_does_not_run_again(tmp_path: Path) -> None:
    """As people write them who use qlab as a library: a tokenizer is tried in another process."""
    script = tmp_path / "script.py"
    script.write_text(
        "print('begun')\nfrom qlab.models.loading import load_tokenizer\nfrom qlab.models.opening import locate\n"
        "print(len(load_tokenizer(locate('embedded'))))\n"
    )
    done = subprocess.run([sys.executable, script], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["begun", "4096"], done.stderr


def test_who_waits_without_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING", 0.5)
    confined(doubled, "a", seconds=2)
    started = time.monotonic()
    with pytest.raises(Exceeded, match=r"was not done in 0\.5 seconds"):
        confined(slept, 60, seconds=2)
    assert time.monotonic() - started < 25


def test_a_process_that_is_killed_or_interrupted_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    first, process = confined(doubled, "1", seconds=5)[1], module._worker()
    with monkeypatch.context() as patch:
        patch.setattr(process, "_pipe", Interrupted(process._pipe))
        with pytest.raises(KeyboardInterrupt):
            confined(doubled, "2", seconds=5)
    value, second = confined(doubled, "3", seconds=5)
    assert value == "33"
    assert second != first
    assert not process.alive
    psutil.Process(second).kill()
    with pytest.raises(Exceeded, match="-9"):
        confined(doubled, "4", seconds=5)
    assert confined(doubled, "5", seconds=5)[0] == "55"


class Interrupted:
    """A pipe on which Ctrl-C comes while an answer is waited for."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    def poll(self, limit: float | None) -> bool:
        raise KeyboardInterrupt

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipe, name)
