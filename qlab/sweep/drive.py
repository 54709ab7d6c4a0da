"""The driver: starts what can be started, tries again what failed, keeps every result at once, and goes on where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qlab.sweep.jobs import Job
from qlab.sweep.results import DONE, FAILED, Result, Store, figures_of
from qlab.sweep.workers import Ended, Workers

PAUSE = 0.2  # seconds between two looks at what runs
MORE = 2.0  # times as much memory as before is set aside for a job that was killed, as one is that took too much
SAID = 300  # characters of a job's complaint that are kept
KILLED = (128 + 9, -9)  # the job, or its keeper and with it the job


@dataclass
class Progress:
    """Where a sweep stands: jobs by their state, and seconds left by what was measured; None before anything was."""

    done: list[Job] = field(default_factory=list)
    failed: list[Job] = field(default_factory=list)
    running: list[Job] = field(default_factory=list)
    waiting: list[Job] = field(default_factory=list)
    left: float | None = None


@dataclass(frozen=True)
class Room:
    """What jobs may take together: bytes of memory, and processes of `threads` threads on so many cores; a job's tries and seconds."""

    memory: float
    cores: int
    threads: int
    tries: int
    seconds: float
    device: str

    @property
    def at_once(self) -> int:
        """Jobs at the same time: one where a GPU works, else as many as have cores of their own."""
        return 1 if self.device != "cpu" else max(1, self.cores // self.threads)


def drive(jobs: Sequence[Job], store: Store, workers: Workers, room: Room, watch: Callable[[Progress], None]) -> Progress:
    """Run the jobs that have no result, those that they need first; a job whose need failed is not run. `watch` is told of every change.

    Never more memory is set aside than `room` has, but for a job that alone needs more: it runs alone.

    Raises:
        OSError: no process can be made, or a result cannot be written.
    """
    waiting, running = [job for job in jobs if not store.done(job)], dict[str, Job]()
    memory, tries = {job.key: job.memory for job in jobs}, dict.fromkeys((job.key for job in jobs), 0)
    done, failed = {job.key for job in jobs} - {job.key for job in waiting}, set[str]()
    by_key, pace = {job.key: job for job in jobs}, list[tuple[float, float]]()

    def settle(key: str, result: Result) -> None:
        store.write(key, result)
        (done if result.state == DONE else failed).add(key)

    def told() -> Progress:
        keys = {state: [by_key[key] for key in by_key if key in group] for state, group in (("done", done), ("failed", failed))}
        return Progress(
            keys["done"], keys["failed"], list(running.values()), list(waiting), time_left(waiting, running, pace, room.at_once)
        )

    watch(told())
    while waiting or running:
        for job in next_jobs(waiting, running, done, memory, room):
            waiting.remove(job)
            running[job.key] = job
            tries[job.key] += 1
            workers.submit(job, room.threads)
            watch(told())
        for key, seconds in workers.running().items():
            if seconds > room.seconds:
                workers.cancel(key)
        for key, ended in workers.ended().items():
            job = running.pop(key)
            result = judged(job, ended, tries[key], room)
            if result.state == DONE:
                pace.append((job.seconds, ended.seconds))
                settle(key, result)
            elif tries[key] < room.tries and not final(ended):
                memory[key] *= MORE if ended.code in KILLED else 1
                waiting.append(job)
            else:
                settle(key, result)
            watch(told())
        for job in [job for job in waiting if set(job.needs) & failed]:
            waiting.remove(job)
            needed = next(by_key[key] for key in job.needs if key in failed)
            settle(job.key, Result(job=job.name, state=FAILED, seconds=0.0, tries=0, error=f"needs '{needed.name}', which failed"))
            watch(told())
        if running:
            time.sleep(PAUSE)
    return told()


def next_jobs(waiting: Sequence[Job], running: dict[str, Job], done: set[str], memory: dict[str, float], room: Room) -> list[Job]:
    """The jobs to start now, in their order: what they need is done, and they fit beside those at work and each other."""
    held, count, found = sum(memory[key] for key in running), len(running), list[Job]()
    for job in waiting:
        if count >= room.at_once:
            break
        if set(job.needs) <= done and (held + memory[job.key] <= room.memory or not count):
            found.append(job)
            held, count = held + memory[job.key], count + 1
    return found


def final(ended: Ended) -> bool:
    """Whether trying again is of no use: the command refused its input (exit code 2)."""
    return ended.code == 2


def judged(job: Job, ended: Ended, tries: int, room: Room) -> Result:
    """What became of a job."""
    if ended.code == 0:
        return Result(job=job.name, state=DONE, seconds=ended.seconds, tries=tries, figures=figures_of(ended.printed))
    said = " ".join(ended.complained.split())
    why = said.rpartition("error: ")[2][:SAID] or f"exit code {ended.code}"
    if ended.code in KILLED:
        why = "it was killed, perhaps since memory was short"
    elif ended.seconds > room.seconds:
        why = f"it took more than {room.seconds / 3600:g} hours"
    return Result(job=job.name, state=FAILED, seconds=ended.seconds, tries=tries, error=why)


def time_left(waiting: Sequence[Job], running: dict[str, Job], pace: Sequence[tuple[float, float]], at_once: int) -> float | None:
    """Seconds, by how long jobs took against what was predicted; None before one is done."""
    predicted, took = (sum(pair[side] for pair in pace) for side in (0, 1))
    if not took or not predicted:
        return None
    rest = sum(job.seconds for job in waiting) + sum(job.seconds for job in running.values()) / 2
    return took / predicted * rest / at_once
