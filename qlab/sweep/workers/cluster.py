"""Jobs on a Ray cluster: each job's predicted memory, its cores and its GPU are its demands, and packing is Ray's."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qlab.artifacts.budget import size_text
from qlab.support.errors import UserError
from qlab.support.wording import counted
from qlab.sweep.jobs import Job, versions
from qlab.sweep.workers.remote import Started, run_job
from qlab.sweep.workers.workers import Ended, Left, Work

NODE = "ray.io/node-id"  # Ray's own label of a machine
QUEUED = 3  # jobs for each that can work at once are with Ray, so that it has some to choose from
EVERY = 5.0  # seconds until the cluster is asked again which machines it has
WAIT = 300.0  # seconds that a job waits while there is no machine that could take it
GRACE = 40.0  # seconds in which cancelled jobs have ended
CANCELLED, LOST = 128 + 15, 255  # exit codes of jobs that were cancelled, and whose machine or worker is gone, or never came
ALONE = "this machine has left the Ray cluster: start Ray here once more; the same command then goes on"


@dataclass
class Task:
    """A job that Ray has, with so much `memory` set aside for it (bytes; Ray was `asked` for no more than a machine has).

    `avoid`: machines that it is not for. `results` as they come. `hope`: when there last was a machine that could take it (monotonic
    seconds). Once it works: on which `node`, called `where`, and `since` when.
    """

    job: Job
    memory: float
    asked: int
    avoid: set[str]
    results: Any
    hope: float
    node: str = ""
    where: str = ""
    since: float = 0.0


@dataclass
class Cluster:
    """The machines of a Ray cluster that this process is connected to. What jobs print goes to files in `logs`.

    `lock` is the file in the sweep's folder that this process holds: machines that do not see it are told by it, and get no more jobs;
    nor do those with other versions of the libraries (`refused`: why, by Ray's names of them). Each job computes with so many `threads`,
    and with a GPU of its own if it needs one. It is tried again on other machines than those it `failed_on`, where there are any, and ends
    when there was none for it for `wait` seconds. `own` is Ray's name of the machine through which this process speaks to the others.
    """

    logs: Path
    lock: Path
    threads: int
    gpus: int
    wait: float = WAIT
    own: str = ""
    tasks: dict[str, Task] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    failed_on: dict[str, set[str]] = field(default_factory=dict)
    known: dict[str, dict[str, float]] = field(default_factory=dict)
    asked: float = float("-inf")
    hope: float = field(default_factory=time.monotonic)

    @property
    def nodes(self) -> dict[str, dict[str, float]]:
        """What the machines have that can take a job, by Ray's names of them: CPU, GPU and memory in bytes; as it was some seconds ago at
        most.

        Raises:
            UserError: the own machine is no longer one of them; then Ray starts no more jobs, and does not say so.
        """
        import ray

        if time.monotonic() - self.asked > EVERY:
            alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
            if self.own and self.own not in alive:
                raise UserError(ALONE)
            self.known = {
                name: has for name, has in alive.items()
                if name not in self.refused and has.get("CPU", 0) >= self.threads and has.get("GPU", 0) >= self.gpus
            }  # fmt: skip
            self.asked = time.monotonic()
        if self.known:
            self.hope = time.monotonic()
        return self.known

    @property
    def at_once(self) -> int:
        able = [min(has["CPU"] // self.threads, has["GPU"] if self.gpus else float("inf")) for has in self.nodes.values()]
        return max(1, int(sum(able)))

    @property
    def described(self) -> str:
        return f"on {counted(len(self.nodes), 'machine')} of a Ray cluster"

    @property
    def needs(self) -> str:
        """What a machine must have for a job, in words."""
        return f"{counted(self.threads, 'core')}{' and a GPU' if self.gpus else ''}"

    @property
    def remarks(self) -> list[str]:
        return [f"a machine was given no jobs: {reason}" for reason in dict.fromkeys(self.refused.values())]

    def left(self) -> Left:
        return Left(float("inf"), QUEUED * self.at_once - len(self.tasks))

    def submit(self, job: Job, memory: float) -> None:
        import ray

        failed = self.failed_on.get(job.key, set())
        avoid = failed if self.nodes.keys() - failed else set()
        largest = max((has.get("memory", 0.0) for name, has in self.nodes.items() if name not in avoid), default=job.memory)
        asked = int(min(memory, largest))  # a job that needs more than any machine has gets one for itself
        demands: dict[str, Any] = {"num_cpus": self.threads, "num_gpus": self.gpus, "memory": asked}
        if elsewhere := sorted(avoid | self.refused.keys()):
            demands["label_selector"] = {NODE: f"!in({','.join(elsewhere)})"}
        task = ray.remote(run_job).options(**demands, max_retries=0)
        results = task.remote(list(job.words), self.threads, str(self.lock), self.lock.read_text(errors="replace"), versions())
        self.tasks[job.key] = Task(job, memory, asked, avoid, results, self.hope)

    def running(self) -> dict[str, Work]:
        return {key: Work(time.monotonic() - task.since, task.where) for key, task in self.tasks.items() if task.where}

    def ended(self) -> dict[str, Ended]:
        found: dict[str, Ended] = {}
        for key, task in list(self.tasks.items()):
            try:
                ended = self._news(task)
                if ended is None and self.tasks[key] is task:  # not given to Ray once more
                    ended = self._hopeless(task)
            except UserError:  # the cluster is lost: what has ended is told first, and the next call says so
                if not found:
                    raise
                break
            if ended is not None:
                found[key] = replace(ended, where=task.where)
        for key, ended in found.items():
            if (node := self.tasks.pop(key).node) and ended.code:
                self.failed_on.setdefault(key, set()).add(node)
            self.cancelled.discard(key)
            for name, text in (("out", ended.printed), ("err", ended.complained)):
                (self.logs / f"{key}.{name}").write_text(text)
        return found

    def _news(self, task: Task) -> Ended | None:
        """How a job has ended; None while it has not. Its start is noted in passing; one that came to a machine that cannot take part
        is given to Ray once more."""
        import ray

        while ray.wait([task.results], timeout=0, fetch_local=False)[0]:
            try:
                said = ray.get(next(task.results))
            except StopIteration:
                return self._failed(task, LOST, "it ended without a word")
            except ray.exceptions.TaskCancelledError:
                return self._failed(task, CANCELLED, "it was stopped")
            except ray.exceptions.OutOfMemoryError:
                return self._failed(task, 128 + 9, "memory was short there")
            except ray.exceptions.RayTaskError as error:
                return self._failed(task, 1, (str(error.cause or error).strip().splitlines() or [type(error.cause).__name__])[-1])
            except ray.exceptions.RayError as error:
                if self.own and isinstance(error, ray.exceptions.LocalRayletDiedError):  # so would all others, until they had no tries left
                    raise UserError(ALONE) from error
                return self._failed(task, LOST, f"the machine that it ran on is gone ({type(error).__name__})")
            if isinstance(said, Ended):
                return said
            if said.refusal:
                return self._elsewhere(task, said)
            task.node, task.where, task.since = said.node, said.where, time.monotonic()
        return None

    def _elsewhere(self, task: Task, said: Started) -> Ended | None:
        """Give a job to Ray once more, for other machines than one that cannot take part; how it ended if it was to be stopped."""
        self.refused[said.node] = said.refusal
        self.asked = float("-inf")  # the machines are others now
        if task.job.key in self.cancelled:
            return self._failed(task, CANCELLED, "it was stopped")
        self.submit(task.job, task.memory)
        return None

    def _hopeless(self, task: Task) -> Ended | None:
        """The end of a job for which there has been no machine for long; None where there may be one. Once more given to Ray, it asks for
        what the machines have then."""
        import ray

        able = [has for name, has in self.nodes.items() if name not in task.avoid]
        if task.where or any(has.get("memory", 0.0) >= task.asked for has in able):
            task.hope = time.monotonic()
        if time.monotonic() - task.hope < self.wait:
            return None
        ray.cancel(task.results)
        reasons = "".join(f"; {remark}" for remark in self.remarks)
        room = f"{self.needs} and {size_text(task.asked)} of memory"
        return self._failed(task, LOST, f"for {self.wait / 60:g} minutes no machine of the cluster had {room} for it{reasons}")

    def _failed(self, task: Task, code: int, why: str) -> Ended:
        seconds, where = (time.monotonic() - task.since, f", on {task.where}") if task.where else (0.0, "")
        return Ended(code, seconds, "", f"error: {why}{where}")

    def cancel(self, key: str) -> None:
        import ray

        if key not in self.cancelled:
            self.cancelled.add(key)
            ray.cancel(self.tasks[key].results)

    def close(self) -> None:
        import ray

        self.own = ""  # the end goes on without it
        for key in self.tasks:
            self.cancel(key)
        end = time.monotonic() + GRACE
        while self.tasks and time.monotonic() < end:
            self.ended()
            time.sleep(0.1)
        self.tasks.clear()  # closed once more, it must not ask Ray again, which would start a cluster of its own for that
        ray.shutdown()  # ends what has not ended: its worker, and with it the job
