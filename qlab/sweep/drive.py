"""The driver: starts what can be started, tries again what failed, keeps every result at once, and goes on where it was stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qlab.artifacts.budget import LACKING
from qlab.support.disk.room import SAID as FULL_DISK
from qlab.support.memory import SHORT
from qlab.sweep.jobs import Job
from qlab.sweep.results import DONE, FAILED, Result, Store, figures_of
from qlab.sweep.workers.workers import Ended, Workers

PAUSE = 0.05  # seconds between two looks at what runs
MORE = 2.0  # times as much memory as before is set aside for a job that had too little, or was killed, as one is that took too much
LONGEST = 300  # characters of a job's complaint that are kept
KILLED = (128 + 9, -9)  # the job, or its keeper and with it the job


@dataclass(frozen=True)
class Progress:
    """Where a sweep stands: jobs by their state, and seconds left by what was measured; None before anything was.

    `where`: the machines of those that run, by their keys, where there are several."""

    done: list[Job] = field(default_factory=list)
    failed: list[Job] = field(default_factory=list)
    running: list[Job] = field(default_factory=list)
    waiting: list[Job] = field(default_factory=list)
    left: float | None = None
    where: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Patience:
    """How often a job is tried, and after how many seconds it counts as failed."""

    tries: int
    seconds: float


def drive(jobs: Sequence[Job], store: Store, workers: Workers, patience: Patience, watch: Callable[[Progress], None]) -> Progress:
    """Run the jobs that have no result, those that they need first; a job whose need failed is not run.

    `watch` is told where the sweep stands at every look; it is the same object as before where nothing has changed.

    Raises:
        OSError: no process can be made, or a result cannot be written.
    """
    state = Driver(jobs, store, workers, patience)
    progress = state.progress()
    watch(progress)
    while state.ready or state.submitted:
        if state.start() | state.collect() | state.moved():
            progress = state.progress()
        else:
            time.sleep(PAUSE)
        watch(progress)
    return progress


class Driver:
    """The jobs of a sweep by their state: `ready` can be started, `blocked` need others before, `submitted` are with the workers."""

    def __init__(self, jobs: Sequence[Job], store: Store, workers: Workers, patience: Patience) -> None:
        self.store, self.workers, self.patience = store, workers, patience
        self.by_key = {job.key: job for job in jobs}
        self.memory = {job.key: math.inf if job.alone else job.memory for job in jobs}
        self.tries = dict.fromkeys(self.by_key, 0)
        self.done, self.failed = set(self.by_key) - missing(jobs, store), set[str]()
        self.lacking = {job.key: set(job.needs) - self.done for job in jobs if job.key not in self.done}
        self.ready = {key: self.by_key[key] for key, needs in self.lacking.items() if not needs}
        self.blocked = {key: self.by_key[key] for key, needs in self.lacking.items() if needs}
        self.submitted: dict[str, Job] = {}
        self.running: dict[str, str] = {}
        self.pace: list[tuple[float, float]] = []
        self.wanted_by: dict[str, list[str]] = {}
        for key, needs in self.lacking.items():
            for need in needs:
                self.wanted_by.setdefault(need, []).append(key)

    def start(self) -> bool:
        """Hand out the ready jobs that fit, in their order; whether there was one. A job that needs more than there is runs alone, as one
        does that is timed."""
        memory, slots = self.workers.left()
        found = list[str]()
        for key in self.ready:
            if slots <= len(found):
                break
            if self.memory[key] <= memory or not (self.submitted or found):
                memory -= self.memory[key] if memory < math.inf else 0  # infinite where others pack the jobs
                found.append(key)
        for key in found:
            job = self.submitted[key] = self.ready.pop(key)
            self.tries[key] += 1
            self.workers.submit(job, self.memory[key])
        return bool(found)

    def collect(self) -> bool:
        """Take what has ended, and stop what takes too long; whether anything had ended."""
        ended = self.workers.ended()
        for key, how in ended.items():
            self.judge(self.submitted.pop(key), how)
        for key, work in self.workers.running().items():
            if work.seconds > self.patience.seconds:
                self.workers.cancel(key)
        return bool(ended)

    def moved(self) -> bool:
        """Whether other jobs are at work than before, or elsewhere."""
        before, self.running = self.running, {key: work.where for key, work in self.workers.running().items()}
        return before != self.running

    def judge(self, job: Job, ended: Ended) -> None:
        """Keep a job's result, or have it tried again."""
        result = judged(job, ended, self.tries[job.key], self.patience)
        if result.state == DONE:
            self.pace.append((job.seconds, ended.seconds))
            self.finish(job.key, result)
        elif self.tries[job.key] < self.patience.tries and not final(ended):
            self.memory[job.key] *= MORE if ended.code in KILLED or SHORT in ended.complained else 1
            self.ready[job.key] = job
        else:
            self.fail(job.key, result)

    def finish(self, key: str, result: Result) -> None:
        """Keep the result of a job that is done; who needed it alone is ready."""
        self.store.write(key, result)
        self.done.add(key)
        for other in self.wanted_by.get(key, ()):
            self.lacking[other].discard(key)
            if not self.lacking[other] and other in self.blocked:
                self.ready[other] = self.blocked.pop(other)

    def fail(self, key: str, result: Result) -> None:
        """Keep the result of a job that failed, and those of all that need it."""
        self.store.write(key, result)
        self.failed.add(key)
        for other in self.wanted_by.get(key, ()):
            if job := self.blocked.pop(other, None):
                why = f"needs '{self.by_key[key].name}', which failed"
                self.fail(other, Result(job=job.name, state=FAILED, seconds=0.0, tries=0, error=why))

    def progress(self) -> Progress:
        """Where the sweep stands. A job that waits for a machine counts as waiting."""
        done, failed = ([job for key, job in self.by_key.items() if key in group] for group in (self.done, self.failed))
        running = [job for key, job in self.submitted.items() if key in self.running]
        waiting = [job for group in (self.submitted, self.ready, self.blocked) for key, job in group.items() if key not in self.running]
        return Progress(done, failed, running, waiting, time_left(waiting, running, self.pace, self.workers.at_once), self.running)


def missing(jobs: Sequence[Job], store: Store) -> set[str]:
    """The keys of the jobs to do: those without a result, and those that they need, whose artifacts another plan may have replaced since,
    or a user deleted. A walk whose artifacts are there takes seconds."""
    found, by_key = set[str](), {job.key: job for job in jobs}
    left = [job.key for job in jobs if not store.done(job)]
    while left:
        key = left.pop()
        if key not in found:
            found.add(key)
            left += [need for need in by_key[key].needs if need in by_key]
    return found


def final(ended: Ended) -> bool:
    """Whether trying again is of no use: the command refused its input (exit code 2), and not for want of what another machine may have.
    Where the disk is full to the last byte, it cannot even say so."""
    return ended.code == 2 and bool(ended.complained.strip()) and not any(lack in ended.complained for lack in (FULL_DISK, SHORT, LACKING))


def judged(job: Job, ended: Ended, tries: int, patience: Patience) -> Result:
    """What became of a job."""
    if ended.code == 0:
        figures = figures_of(ended.printed)
        return Result(job=job.name, state=DONE, seconds=ended.seconds, tries=tries, where=ended.where, figures=figures)
    said = " ".join(ended.complained.split())
    _, found, message = said.rpartition("error: ")
    why = (message[:LONGEST] if found else said[-LONGEST:]) or f"exit code {ended.code}"
    if ended.seconds > patience.seconds:
        why = f"it took more than {patience.seconds / 3600:g} hours"
    elif ended.code in KILLED:
        why = "it was killed, perhaps since memory was short"
    return Result(job=job.name, state=FAILED, seconds=ended.seconds, tries=tries, error=why, where=ended.where)


def time_left(waiting: Sequence[Job], running: Sequence[Job], pace: Sequence[tuple[float, float]], at_once: int) -> float | None:
    """Seconds, by how long jobs took against what was predicted; None before one is done."""
    predicted, took = (sum(pair[side] for pair in pace) for side in (0, 1))
    if not took or not predicted:
        return None
    rest = sum(job.seconds for job in waiting) + sum(job.seconds for job in running) / 2
    return took / predicted * rest / at_once
