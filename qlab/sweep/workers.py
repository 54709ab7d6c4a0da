"""Where jobs run: one small interface, and processes of this machine behind it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from qlab.sweep.jobs import Job

GRACE = 30.0  # seconds that a stopped job has to end in order


@dataclass(frozen=True)
class Ended:
    """How a job ended: its exit code (-N by signal N), seconds, and what it printed."""

    code: int
    seconds: float
    printed: str
    complained: str


class Workers(Protocol):
    """What runs jobs."""

    def submit(self, job: Job, threads: int, device: str) -> None:
        """Start a job.

        Raises:
            OSError: no process can be made.
        """

    def ended(self) -> dict[str, Ended]:
        """The jobs that have ended since this was last asked, by their keys."""

    def running(self) -> dict[str, float]:
        """Keys of the jobs at work, each with the seconds since its start."""

    def cancel(self, key: str) -> None:
        """Stop a job, as Ctrl-C does; it is then among those that have ended."""

    def close(self) -> None:
        """Stop all jobs and wait for their ends."""


@dataclass
class Started:
    """A process, its log files, and when it was started (monotonic seconds)."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path
    since: float


@dataclass
class Local:
    """Processes of this machine, each with a session of its own; what they print goes to files in `logs`."""

    logs: Path
    jobs: dict[str, Started] = field(default_factory=dict)

    def submit(self, job: Job, threads: int, device: str) -> None:
        out, err = self.logs / f"{job.key}.out", self.logs / f"{job.key}.err"
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "qlab", *job.words],
                env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True,
            )  # fmt: skip
        self.jobs[job.key] = Started(process, out, err, time.monotonic())

    def ended(self) -> dict[str, Ended]:
        found = {}
        for key, started in list(self.jobs.items()):
            if (code := started.process.poll()) is not None:
                printed, complained = (file.read_text(errors="replace") for file in (started.out, started.err))
                found[key] = Ended(code, time.monotonic() - started.since, printed, complained)
                del self.jobs[key]
        return found

    def running(self) -> dict[str, float]:
        return {key: time.monotonic() - started.since for key, started in self.jobs.items()}

    def cancel(self, key: str) -> None:
        with suppress(ProcessLookupError):
            self.jobs[key].process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        for key in self.jobs:
            self.cancel(key)
        for started in self.jobs.values():
            try:
                started.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(started.process.pid, signal.SIGKILL)
                started.process.wait()
        self.jobs.clear()
