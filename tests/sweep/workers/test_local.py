"""Processes of this machine: nothing of a job outlives who wanted it, and how it ended is told."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from qlab.sweep.drive import KILLED
from qlab.sweep.jobs import Job
from qlab.sweep.workers.local import Local
from qlab.sweep.workers.workers import Ended, Workers


def local(logs: Path) -> Local:
    return Local(logs, memory=1e9, at_once=4, threads=1)


def job(*words: str) -> Job:
    return Job("quantize", "m", "", words, words[0], (), 1, 1)


def until(found: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        time.sleep(0.05)


def ends_of(workers: Workers, *keys: str, seconds: float = 180) -> list[Ended]:
    """How these jobs end, whichever does first: workers tell each end once."""
    ended: dict[str, Ended] = {}
    until(lambda: bool(ended.update(workers.ended()) or ended.keys() >= set(keys)), seconds)
    return [ended[key] for key in keys]


def end_of(workers: Workers, key: str, seconds: float = 180) -> Ended:
    return ends_of(workers, key, seconds=seconds)[0]


def of_job(mark: str) -> list[psutil.Process]:
    """qlab's own process for a job whose last word is `mark`."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if words[-1:] == [mark] and "qlab.serve.supervisor" not in words and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_what_a_job_prints_and_how_it_ends_is_told(tmp_path: Path) -> None:
    workers = local(tmp_path)
    workers.submit(job("--version"), 1)
    workers.submit(job("evaluate", "--nothing"), 1)
    good, bad = ends_of(workers, "--version", "evaluate")
    assert (good.code, good.printed[:5]) == (0, "qlab ")
    assert bad.code == 2
    assert "error:" in bad.complained
    assert workers.running() == {}


SLOW = ["quantize", "--recipe", "tuned-w4g128", "--windows", "64", "--length", "512", "--model", "embedded", "--device", "cpu", "--out"]


def test_a_cancelled_job_ends_in_order(tmp_path: Path) -> None:
    workers, mark = local(tmp_path), str(tmp_path / "made")
    workers.submit(job(*SLOW, mark), 1)
    until(lambda: (tmp_path / "made").exists())
    workers.cancel("quantize")
    workers.cancel("quantize")
    assert end_of(workers, "quantize").code != 0  # of a signal that it heeds; a slow machine's keeper kills it after its grace
    assert of_job(mark) == []


def test_a_killed_job_is_told_as_killed(tmp_path: Path) -> None:
    workers, mark = local(tmp_path), str(tmp_path / "made")
    workers.submit(job(*SLOW, mark), 1)
    until(lambda: (tmp_path / "made").exists())
    of_job(mark)[0].kill()
    assert end_of(workers, "quantize").code in KILLED


def drive(logs: Path, mark: str) -> None:
    """What a driver does that has a job done and waits."""
    local(logs).submit(job(*SLOW, mark), 1)
    time.sleep(600)


def test_nothing_outlives_a_driver_that_is_killed(tmp_path: Path) -> None:
    mark = str(tmp_path / "made")
    driver = multiprocessing.get_context("fork").Process(target=drive, args=(tmp_path, mark))
    driver.start()
    until(lambda: (tmp_path / "made").exists())
    assert of_job(mark)
    driver.kill()
    driver.join()
    until(lambda: of_job(mark) == [], 30)
