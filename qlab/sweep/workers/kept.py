"""A command of qlab as a process that does not outlive whoever wants it: it has a keeper (qlab.serve.supervisor)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qlab.sweep.workers.workers import Ended

GRACE = 30.0  # seconds that a stopped job has to end in order


@dataclass
class Kept:
    """A process, the files that it prints to, and when it was started (monotonic seconds).

    The keeper ends it and all that it has started when this process is gone, however it went.
    """

    process: subprocess.Popen[bytes]
    out: Path
    err: Path
    since: float

    @classmethod
    def start(cls, words: Sequence[str], threads: int, logs: Path, name: str) -> Kept:
        """Start `qlab` with these words and so many threads; what it prints goes to `logs`/`name`.out and .err.

        Raises:
            OSError: no process can be made, or the files cannot be written.
        """
        out, err = logs / f"{name}.out", logs / f"{name}.err"
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "qlab.serve.supervisor", sys.executable, "-m", "qlab", *words],
                env=environment, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, start_new_session=True,
            )  # fmt: skip
        return cls(process, out, err, time.monotonic())

    @property
    def seconds(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self.since

    def ended(self) -> Ended | None:
        """How it ended; None while it works."""
        if (code := self.process.poll()) is None:
            return None
        printed, complained = (file.read_text(errors="replace") for file in (self.out, self.err))
        return Ended(code, self.seconds, printed, complained)

    def cancel(self) -> None:
        """Ask it to end in order."""
        self.process.terminate()

    def stop(self) -> None:
        """Wait for the end of one that was asked, GRACE seconds at most; then it is killed."""
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()  # then the system kills the job
            self.process.wait()

    def forget(self) -> None:
        """Close the pipe to the keeper of a process that has ended."""
        if self.process.stdin:
            self.process.stdin.close()
