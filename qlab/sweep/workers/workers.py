"""Where jobs run: one small interface. Behind it are processes of this machine (local.py beside this) or a Ray cluster (cluster.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:  # what runs a job on another machine would load PyTorch for it
    from qlab.sweep.jobs import Job


@dataclass(frozen=True)
class Ended:
    """How a job ended: its exit code (128 + N by signal N), seconds, what it printed, and the machine where there are several."""

    code: int
    seconds: float
    printed: str
    complained: str
    where: str = ""


class Work(NamedTuple):
    """A job at work: the seconds since its start, and the machine where there are several."""

    seconds: float
    where: str = ""


class Left(NamedTuple):
    """What is left for more jobs: bytes of memory, and how many jobs are taken beside those that are there."""

    memory: float
    jobs: int


class Workers(Protocol):
    """What runs jobs."""

    @property
    def at_once(self) -> int:
        """How many jobs work at the same time where memory allows."""

    @property
    def described(self) -> str:
        """Where jobs work, in words."""

    @property
    def remarks(self) -> list[str]:
        """What a user should know of the machines at the end, in sentences."""

    def left(self) -> Left:
        """What is left for more jobs."""

    def submit(self, job: Job, memory: float) -> None:
        """Start a job, or have it wait for a machine with so many bytes of memory; infinitely many: for one without other jobs.

        Raises:
            OSError: no process can be made.
        """

    def running(self) -> dict[str, Work]:
        """The jobs at work, by their keys; one that waits for a machine is not among them."""

    def ended(self) -> dict[str, Ended]:
        """The jobs that have ended since this was last asked, by their keys."""

    def cancel(self, key: str) -> None:
        """Stop a job, as Ctrl-C does; it is then among those that have ended."""

    def close(self) -> None:
        """Stop all jobs and wait for their ends."""
