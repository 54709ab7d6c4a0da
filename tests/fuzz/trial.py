"""One command line tried on one damaged input, in this process: what came of it, and whether that is an answer that a user can use."""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TextIO

import psutil

from qlab.cli import call

TIMES = int(os.environ.get("QLAB_FUZZ", "1"))  # how many times as much is tried
SECONDS = 10.0  # of this process's own time that an answer may take; the slowest good run takes two
WAITING = 90.0  # seconds after which it hangs, on a machine that may be busy
MEMORY = 1 << 30  # bytes beyond what the process had, for a model of four megabytes
LONGEST = 700  # characters of a message, and its paths
CHAT = '{"messages": [{"role": "user", "content": "What is an array of words?"}, {"role": "assistant", "content": "A list."}]}\n' * 40
TEXT = "The quick brown fox returns an array of words, and the array holds numbers. " * 40


def evaluate(model: Path, text: Path) -> list[str]:
    """Measure the model on the text."""
    return ["evaluate", str(model), "--text", str(text), *["--window", "16", "--tokens", "64", "--json", "--results="]]


def quantize(model: Path, out: Path, recipe: str, *more: str) -> list[str]:
    """Quantize the model by the recipe."""
    return ["quantize", "--model", str(model), "--out", str(out), *f"--recipe {recipe} --windows 2 --length 16".split(), *more]


COMMANDS: dict[str, Callable[[Path, Path, Path], list[str]]] = {
    "evaluate": lambda model, out, text: evaluate(model, text),
    "quantize": lambda model, out, text: quantize(model, out, "awq-w4g32", "--calibration", str(text)),
    "dry-run": lambda model, out, text: quantize(model, out, "awq-w4g32", "--dry-run"),
    "gguf": lambda model, out, text: quantize(model, out, "q8_0", "--calibration", str(text)),
    "chat": lambda model, out, text: evaluate(model, text.with_name("chat.jsonl")),
    "plan": lambda model, out, text: ["plan", str(model), "--json"],
    "serve": lambda model, out, text: ["serve", str(model), "--name", "m", "--write", str(out)],
}
"""What is tried, of a model's path, a folder that is not there yet, and a file of text."""


@dataclass(frozen=True)
class Answer:
    """What a command line came to: its exit code, what it printed to whom, its time, the memory it took beyond what was there."""

    code: int
    out: str
    err: str
    seconds: float
    memory: int
    left: list[str]

    def fault(self) -> str:
        """What is wrong with this answer, whatever was asked; empty where it is one that a user can use."""
        if self.code not in (0, 2):
            return f"exit code {self.code}: {self.err[-500:]}"
        if "Traceback" in self.out + self.err or "panicked" in self.err:
            return f"a traceback: {self.err[-500:]}"
        if self.seconds > SECONDS:
            return f"{self.seconds:.0f} s"
        if self.memory > MEMORY:
            return f"{self.memory / 1e9:.1f} GB of memory"
        if self.code == 2 and self.left:
            return f"left behind: {self.left[:5]}"
        if self.code == 2 and ("error:" not in self.err or len(self.err) > LONGEST):
            return f"a message of {len(self.err)} characters: {self.err[:300]}"
        return "" if self.code == 2 else self._fault_of_figures()

    def _fault_of_figures(self) -> str:
        """Whether `--json` gave figures that are no numbers."""
        last = self.out.strip().splitlines()[-1] if self.out.strip() else ""
        if not last.startswith("{"):
            return ""
        odd = [name for name, value in json.loads(last).items() if isinstance(value, float) and not math.isfinite(value)]
        return f"figures that are no numbers: {odd}" if odd else ""


def attempt(command: str, model: Path, work: Path) -> Answer:
    """Try `command` on the model at `model`; `work` is an empty folder."""
    out, text = work / "out", work / "text.txt"
    text.write_text(TEXT)
    (work / "chat.jsonl").write_text(CHAT)
    before = files_in(out)
    held = psutil.Process().memory_info().rss
    started = time.process_time()
    with (work / "out.log").open("w+") as printed, (work / "err.log").open("w+") as said:
        code = quickly(COMMANDS[command](model, out, text), printed, said)
    seconds = time.process_time() - started
    left = sorted(files_in(out) - before)
    words = [(work / name).read_text(errors="replace") for name in ("out.log", "err.log")]
    return Answer(code, words[0], words[1], seconds, peak() - held, left)


def quickly(arguments: list[str], printed: TextIO, said: TextIO) -> int:
    """The exit code of a command line that may take little memory and time."""
    with little_memory(), overdue_after(WAITING), printed_to(printed, said):
        return call(arguments)


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} if folder.exists() else set()


@contextlib.contextmanager
def printed_to(out: TextIO, err: TextIO) -> Iterator[None]:
    """Let all that is printed, by libraries in other languages too, go to two files."""
    kept = os.dup(1), os.dup(2)
    try:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        for number, descriptor in zip((1, 2), kept):
            os.dup2(descriptor, number)
            os.close(descriptor)


class Hang(BaseException):
    """It did not end; no `except Exception` on the way takes this for a damaged file."""


@contextlib.contextmanager
def overdue_after(seconds: float) -> Iterator[None]:
    """Raise Hang where the block takes longer."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"not done in {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Count the peak of memory from here on, where Linux lets us, and let no fault take the machine's: a larger request is refused."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 4 * MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def peak() -> int:
    """The largest memory that this process has had, in bytes."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
