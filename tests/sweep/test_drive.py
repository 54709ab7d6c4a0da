"""The driver, on workers that do what a test tells them."""

from __future__ import annotations

import errno
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from qlab.artifacts.budget import too_little
from qlab.support.disk.room import no_room
from qlab.support.memory import no_memory
from qlab.sweep.drive import KILLED, Patience, Progress, drive
from qlab.sweep.jobs import Job
from qlab.sweep.results import DONE, FAILED, Result, Store
from qlab.sweep.workers.workers import Ended, Left, Work

PATIENCE = Patience(tries=2, seconds=100)


def job(key: str, *needs: str, memory: float = 1, seconds: float = 10) -> Job:
    return Job("quantize", "m", key, (key,), key, needs, memory, seconds)


@dataclass
class Scripted:
    """Workers that end each job by the next of its exit codes, one job a look; 0 where none is told."""

    codes: dict[str, list[int]] = field(default_factory=dict)
    takes: dict[str, float] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    at_work: list[Job] = field(default_factory=list)
    together: list[float] = field(default_factory=list)
    beside: list[tuple[str, int]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    held: dict[str, float] = field(default_factory=dict)
    memory: float = 10
    at_once: int = 4
    described: str = "in a test"
    remarks: list[str] = field(default_factory=list)

    def left(self) -> Left:
        return Left(self.memory - sum(self.held[job.key] for job in self.at_work), self.at_once - len(self.at_work))

    def submit(self, job: Job, memory: float) -> None:
        self.started.append(job.key)
        self.at_work.append(job)
        self.held[job.key] = memory
        self.together.append(sum(self.held[each.key] for each in self.at_work))
        self.beside.append((job.key, len(self.at_work) - 1))

    def ended(self) -> dict[str, Ended]:
        if not self.at_work:
            return {}
        job = self.at_work.pop(0)
        told = self.codes.get(job.key, [])
        code = told.pop(0) if told else 0
        return {job.key: Ended(code, self.takes.get(job.key, 5.0), 'text\n{"kl": 0.5}\n', f"error: no {job.key}" if code else "")}

    def running(self) -> dict[str, Work]:
        return {job.key: Work(self.takes.get(job.key, 5.0)) for job in self.at_work}

    def cancel(self, key: str) -> None:
        self.cancelled.append(key)

    def close(self) -> None:
        self.at_work.clear()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlab.sweep.drive.PAUSE", 0.0)


def run(jobs: list[Job], folder: Path, workers: Scripted) -> Progress:
    folder.mkdir(exist_ok=True)
    return drive(jobs, Store(folder), workers, PATIENCE, lambda progress: None)


def test_what_is_needed_comes_first_and_nothing_is_done_twice(tmp_path: Path) -> None:
    jobs, workers = [job("a"), job("b", "a"), job("c", "a"), job("d")], Scripted()
    end = run(jobs, tmp_path / "jobs", workers)
    assert workers.started.index("a") < workers.started.index("b")
    assert sorted(workers.started) == ["a", "b", "c", "d"]
    assert [each.key for each in end.done] == ["a", "b", "c", "d"]
    again = Scripted()
    run(jobs, tmp_path / "jobs", again)
    assert again.started == []
    (tmp_path / "jobs" / "b.json").write_text("half")  # as nobody writes it; then it is done again, with what it needs alone
    run(jobs, tmp_path / "jobs", again)
    assert again.started == ["a", "b"]


def test_no_more_memory_than_there_is_is_set_aside(tmp_path: Path) -> None:
    jobs, workers = [job(str(number), memory=4) for number in range(6)] + [job("large", memory=50)], Scripted()
    run(jobs, tmp_path / "jobs", workers)
    assert max(total for total, key in zip(workers.together, workers.started) if key != "large") <= workers.memory
    assert workers.together[workers.started.index("large")] == 50  # alone
    assert len(workers.started) == 7
    one = Scripted(at_once=1)
    run(jobs, tmp_path / "others", one)
    assert max(one.together[:6]) == 4


def test_what_fails_is_tried_again_and_then_a_row(tmp_path: Path) -> None:
    workers = Scripted({"a": [1, 0], "b": [1, 1], "d": [2]})
    end = run([job("a"), job("b"), job("c", "b"), job("d"), job("e")], tmp_path / "jobs", workers)
    assert [workers.started.count(key) for key in "abcde"] == [2, 2, 0, 1, 1]  # an input that is refused is not tried again
    assert sorted(each.key for each in end.failed) == ["b", "c", "d"]
    found = {key: Store(tmp_path / "jobs").read(key) for key in "abcde"}
    assert found["a"] == Result(job="quantize m a", state=DONE, seconds=5, tries=2, figures={"kl": 0.5})
    assert found["b"] == Result(job="quantize m b", state=FAILED, seconds=5, tries=2, error="no b")
    assert found["c"] is not None
    assert found["c"].error == "needs 'quantize m b', which failed"
    again = Scripted()
    run([job("a"), job("b"), job("c", "b"), job("d"), job("e")], tmp_path / "jobs", again)
    assert sorted(again.started) == ["b", "c", "d"]  # the next run tries them anew


def test_a_job_that_was_killed_gets_twice_the_room(tmp_path: Path) -> None:
    workers = Scripted({"a": [*KILLED]})
    jobs = [job("a", memory=6), job("b", memory=4), job("c", memory=4)]
    run(jobs, tmp_path / "jobs", workers)
    assert workers.started[:2] == ["a", "b"]
    assert [others for key, others in workers.beside if key == "a"] == [0, 0]  # 12 of 10: alone
    assert ("b", 1) in workers.beside  # at first it had company
    found = Store(tmp_path / "jobs").read("a")
    assert found is not None
    assert "perhaps since memory was short" in found.error


def test_what_another_machine_may_have_is_no_reason_to_give_up(tmp_path: Path) -> None:
    """A full disk and too little memory end with the code of a refused input, and are tried again; with more memory where that lacked."""

    class Lacking(Scripted):
        def ended(self) -> dict[str, Ended]:
            said = {
                "a": no_room(errno.ENOSPC), "b": no_memory(MemoryError()), "c": "no model 'x'", "d": too_little(2e6, 1e6, "of disk", "here")
            }  # fmt: skip
            return {key: replace(how, complained=f"error: {said[key]}" if key in said else "") for key, how in super().ended().items()}

    workers = Lacking({"a": [2, 0], "b": [2, 0], "c": [2], "d": [2, 0], "e": [2, 0]})  # e: there was no room for its message
    end = run([job(key) for key in "abcde"], tmp_path / "jobs", workers)
    assert [workers.started.count(key) for key in "abcde"] == [2, 2, 1, 2, 2]
    assert [each.key for each in end.failed] == ["c"]
    assert (workers.held["a"], workers.held["b"]) == (1, 2)


def test_what_takes_too_long_is_stopped(tmp_path: Path) -> None:
    workers = Scripted({"a": [-15, -15]}, {"a": 500.0})
    jobs = [job("b"), job("a")]
    run(jobs, tmp_path / "jobs", workers)
    assert "a" in workers.cancelled
    found = Store(tmp_path / "jobs").read("a")
    assert found is not None
    assert found.error.startswith("it took more than 0.02")


def test_time_left_goes_by_what_was_measured(tmp_path: Path) -> None:
    seen: list[Progress] = []
    (tmp_path / "jobs").mkdir()
    drive([job(str(n)) for n in range(4)], Store(tmp_path / "jobs"), Scripted(at_once=1), PATIENCE, seen.append)
    assert seen[0].left is None
    halves = [progress.left for progress in seen if progress.left]
    assert halves[0] == pytest.approx(0.5 * 30, abs=6)  # predicted 10 s each, 5 s measured, three to go
    assert halves == sorted(halves, reverse=True)


def test_thousands_of_jobs_are_scheduled_in_seconds(tmp_path: Path) -> None:
    """A walk and two hundred evaluations for each of five models. Seconds of computing, since other programs may be busy."""
    jobs = []
    for model in range(5):
        jobs += [job(f"w{model}"), *(job(f"e{model}-{number}", f"w{model}") for number in range(200))]
    begin = time.process_time()
    end = run(jobs, tmp_path / "jobs", Scripted())
    assert len(end.done) == 1005
    assert time.process_time() - begin < 10
    begin = time.process_time()
    assert len(run(jobs, tmp_path / "jobs", Scripted()).done) == 1005
    assert time.process_time() - begin < 2


def test_who_watches_is_told_by_the_same_object_that_nothing_changed(tmp_path: Path) -> None:
    seen: list[Progress] = []

    class Slow(Scripted):
        looks = 0

        def ended(self) -> dict[str, Ended]:
            self.looks += 1
            return {} if self.looks < 5 else super().ended()

    (tmp_path / "jobs").mkdir()
    drive([job("a")], Store(tmp_path / "jobs"), Slow(), PATIENCE, seen.append)
    assert len(seen) > 5
    assert len({id(progress) for progress in seen}) == 3  # waiting, running, done


def test_a_walk_is_gone_over_again_for_what_needs_it(tmp_path: Path) -> None:
    store, walk, first = Store(tmp_path), job("walk"), job("first", "walk")
    drive([walk, first], store, Scripted(), PATIENCE, lambda _: None)
    workers = Scripted()
    drive([walk, first], store, workers, PATIENCE, lambda _: None)
    assert workers.started == []
    drive([walk, first, job("second", "walk")], store, workers, PATIENCE, lambda _: None)
    assert workers.started == ["walk", "second"]  # its artifacts may be another plan's by now


def test_a_job_that_is_timed_has_no_other_beside_it(tmp_path: Path) -> None:
    jobs = [job("a"), replace(job("b"), alone=True), job("c"), replace(job("d"), alone=True), job("e")]
    workers = Scripted()
    run(jobs, tmp_path / "jobs", workers)
    assert sorted(workers.started) == ["a", "b", "c", "d", "e"]
    assert workers.started[-2:] == ["b", "d"]
    assert [others for key, others in workers.beside if key in "bd"] == [0, 0]
    assert ("c", 1) in workers.beside  # the others had company
    packed = Scripted(memory=math.inf)  # where others pack, all are handed over, and each says what it wants
    run(jobs, tmp_path / "packed", packed)
    assert packed.held["b"] == packed.held["d"] == math.inf
    assert packed.held["a"] == 1


def test_a_result_says_where_it_was_found(tmp_path: Path) -> None:
    class Elsewhere(Scripted):
        def ended(self) -> dict[str, Ended]:
            return {key: replace(how, where="far away") for key, how in super().ended().items()}

    run([job("a"), job("b")], tmp_path / "jobs", Elsewhere({"b": [2]}))
    found = [Store(tmp_path / "jobs").read(key) for key in "ab"]
    assert [(result.state, result.where) for result in found if result] == [(DONE, "far away"), (FAILED, "far away")]
