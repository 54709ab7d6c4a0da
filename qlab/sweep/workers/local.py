"""Jobs as processes of this machine: as many at a time as cores and memory allow, by what is predicted for each."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from qlab.artifacts.budget import size_text
from qlab.sweep.jobs import Job
from qlab.sweep.workers.kept import Kept
from qlab.sweep.workers.workers import Ended, Left, Work

SHARE = 0.9  # of the memory that is free, where the file sets no limit


@dataclass
class Local:
    """Processes that print to files in `logs`, each with so many `threads`; `memory` bytes are there for all together."""

    logs: Path
    memory: float
    at_once: int
    threads: int
    jobs: dict[str, Kept] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)

    @property
    def described(self) -> str:
        return f"in {size_text(self.memory)} of memory"

    @property
    def remarks(self) -> list[str]:
        return []

    def left(self) -> Left:
        return Left(self.memory - sum(self.held.values()), self.at_once - len(self.jobs))

    def submit(self, job: Job, memory: float) -> None:
        self.jobs[job.key] = Kept.start(job.words, self.threads, self.logs, job.key)
        self.held[job.key] = memory

    def running(self) -> dict[str, Work]:
        return {key: Work(started.seconds) for key, started in self.jobs.items()}

    def ended(self) -> dict[str, Ended]:
        found = {key: ended for key, started in self.jobs.items() if (ended := started.ended()) is not None}
        for key in found:
            self._forget(key)
        return found

    def cancel(self, key: str) -> None:
        if key not in self.cancelled:
            self.cancelled.add(key)
            self.jobs[key].cancel()

    def close(self) -> None:
        for key in self.jobs:
            self.cancel(key)
        for key, started in list(self.jobs.items()):
            started.stop()
            self._forget(key)

    def _forget(self, key: str) -> None:
        self.jobs.pop(key).forget()
        self.held.pop(key)
        self.cancelled.discard(key)


def free_memory() -> float:
    """Bytes that jobs may take here."""
    return SHARE * psutil.virtual_memory().available


def jobs_at_once(device: str, threads: int) -> int:
    """One job where a GPU works, else as many as have `threads` cores of their own."""
    return 1 if device != "cpu" else max(1, len(os.sched_getaffinity(0)) // threads)
