"""Where jobs run: one small interface, and processes of this machine behind it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from qlab.sweep.jobs import Job

GRACE = 30.0  # seconds that a stopped job has to end in order


@dataclass(frozen=True)
class Ended:
    """How a job ended: its exit code (128 + N by signal N), seconds, and what it printed."""

    code: int
    seconds: float
    printed: str
    complained: str


class Workers(Protocol):
    """What runs jobs."""

    def submit(self, job: Job, threads: int) -> None:
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
    """Processes of this machine; what they print goes to files in `logs`. Each has a keeper (qlab.serve.supervisor), which ends it and all
    that it has started when this process is gone, however it went."""

    logs: Path
    jobs: dict[str, Started] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)

    def submit(self, job: Job, threads: int) -> None:
        out, err = self.logs / f"{job.key}.out", self.logs / f"{job.key}.err"
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "qlab.serve.supervisor", sys.executable, "-m", "qlab", *job.words],
                env=environment, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, start_new_session=True,
            )  # fmt: skip
        self.jobs[job.key] = Started(process, out, err, time.monotonic())

    def ended(self) -> dict[str, Ended]:
        found = {}
        for key, started in list(self.jobs.items()):
            if (code := started.process.poll()) is not None:
                printed, complained = (file.read_text(errors="replace") for file in (started.out, started.err))
                found[key] = Ended(code, time.monotonic() - started.since, printed, complained)
                self._forget(key)
        return found

    def running(self) -> dict[str, float]:
        return {key: time.monotonic() - started.since for key, started in self.jobs.items()}

    def cancel(self, key: str) -> None:
        if key not in self.cancelled:
            self.cancelled.add(key)
            self.jobs[key].process.terminate()

    def close(self) -> None:
        for key in self.jobs:
            self.cancel(key)
        for key, started in list(self.jobs.items()):
            try:
                started.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                started.process.kill()  # then the system kills the job
                started.process.wait()
            self._forget(key)

    def _forget(self, key: str) -> None:
        lifeline = self.jobs.pop(key).process.stdin
        self.cancelled.discard(key)
        if lifeline:
            lifeline.close()
