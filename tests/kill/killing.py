"""Commands in a process of their own, stopped at a moment that is told by what they have written by then, not by a clock alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from qlab import ROOT
from tests.starting import Started, start

MARK = "QLAB_KILLED"  # in the environment of all that a command starts
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}
FULL = "FULL"
DISK = "192m"  # of the small disk; no command here needs half of it
LONGEST = 900  # seconds that a command may take


@dataclass
class Run:
    """A command at work in `folder`. Each new name there, and whatever it prints, is an event. A `true` one is no copy."""

    words: list[str]
    folder: Path
    logs: Path
    true: bool = False
    process: Started = field(init=False)
    started: float = field(init=False)
    seen: set[str] = field(default_factory=set)
    lengths: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        (self.folder / "tmp").mkdir(exist_ok=True)
        self.logs.mkdir(exist_ok=True)
        environment = os.environ | {MARK: str(self.folder), "TMPDIR": str(self.folder / "tmp"), "PYTHONUNBUFFERED": "1"}
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(self.logs / "compiled")  # PyTorch keeps what it has compiled among temporary files
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with (self.logs / "out").open("wb") as out, (self.logs / "err").open("wb") as err:
            self.process = start(self.words, out, err, self.folder, environment, session=True, true=self.true)
        self.look()
        self.started = time.monotonic()

    @property
    def printed(self) -> str:
        """All that it printed, its lines joined."""
        return " ".join(" ".join((self.logs / name).read_text(errors="replace") for name in ("out", "err")).split())

    def look(self) -> int:
        """How many events there have been."""
        for folder, _, names in os.walk(self.folder):
            self.seen |= {os.path.join(folder, name) for name in names}
        self.lengths.add((self.logs / "out").stat().st_size)
        return len(self.seen) + len(self.lengths)

    def events(self) -> list[float]:
        """Let it run to its end; seconds from its start to each event, the last of which is what it prints in the end."""
        found, before = list[float](), self.look()
        while self.process.poll() is None:
            found += [time.monotonic() - self.started] * (self.look() - before - len(found))
            time.sleep(0.004)
        return found

    def wait(self) -> int:
        return self.process.wait(LONGEST)


@dataclass(frozen=True)
class Moment:
    """So many seconds after so many events."""

    events: int
    seconds: float

    @classmethod
    def drawn(cls, events: list[float], generator: random.Random) -> Moment:
        """Somewhere between the first of these `events` and the last."""
        at = events[0] + generator.uniform(0, 0.8) * (events[-1] - events[0])
        count = sum(event <= at for event in events)
        return cls(count, at - events[count - 1])

    def reached(self, run: Run) -> bool:
        """Wait for it; False where the command has ended before."""
        first, count, since = run.look(), 0, run.started
        while run.process.poll() is None:
            if (now := run.look() - first) > count:
                count, since = now, time.monotonic()
            if count > self.events or (count == self.events and time.monotonic() - since >= self.seconds):
                return True
            time.sleep(0.004)
        return False

    def earlier(self) -> Moment:
        """Nearer to the first event; the same where it is that."""
        return Moment(max(1, self.events - max(1, self.events // 5)), self.seconds / 2 if self.seconds > 0.01 else 0.0)


def left(folder: Path, session: int | None = None, seconds: float = 60) -> list[str]:
    """Processes of commands in `folder`, or of this `session`, that are still there after so many seconds."""
    end = time.monotonic() + seconds
    while (found := alive(folder, session)) and time.monotonic() < end:
        time.sleep(0.2)
    return found


def alive(folder: Path, session: int | None) -> list[str]:
    """A copy's own processes, too, of which the system tells another environment unless they have been started anew."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):  # gone, or another user's
            if (
                os.getsid(process.pid) == session or process.environ().get(MARK) == str(folder)
            ) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline())[:200])
    return found


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A disk of its own at `folder`, which can be filled; False where this user may not mount one."""
    folder.mkdir()
    mounted = not subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", str(folder)], capture_output=True).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Not a byte is free on the disk of `folder`."""
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as stream, suppress(OSError):
            for size in (1 << 20, 1 << 10, 1):
                with suppress(OSError):
                    while stream.write(bytes(size)) == size:
                        pass
        yield
    finally:
        filler.unlink()
