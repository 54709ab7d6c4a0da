"""A real Ray cluster of three nodes on this machine, each started by itself with resources of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from qlab import ROOT
from qlab.artifacts.manifest import COST
from qlab.cli import call
from qlab.support.errors import UserError
from qlab.sweep.drive import Patience, Progress, drive
from qlab.sweep.jobs import Job
from qlab.sweep.results import Store
from qlab.sweep.workers.cluster import LOST, Cluster
from qlab.sweep.workers.connecting import connect
from qlab.sweep.workers.remote import Started
from tests.sweep.test_sweep import PLAN
from tests.sweep.workers.nodes import STARTING, WORKING, Node, Nodes, ray_nodes
from tests.sweep.workers.test_local import end_of, ends_of, of_job, until

pytest.importorskip("ray", reason="Ray is not installed: 'make cluster' installs it")

MEMORY = 1_000_000_000  # of a node; the head has half of it
WALK = [
    "quantize", "--recipe", "gptq-w4g128", "--windows", "32", "--length", "256", "--model", "embedded", "--device", "cpu", "--wait",
    "--out",
]  # fmt: skip


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with ray_nodes(Node(MEMORY // 2), Node(MEMORY), Node(MEMORY)) as found:
        yield found


@pytest.fixture
def cluster(nodes: Nodes, tmp_path: Path) -> Iterator[Cluster]:
    (tmp_path / ".lock").write_text("owner")
    found = connect(nodes.address, tmp_path, tmp_path / ".lock", 1, "cpu")
    until(lambda: not setattr(found, "asked", 0.0) and len(found.nodes) == 3, STARTING)
    yield found
    found.close()


def job(*words: str, key: str = "", memory: float = 1e8) -> Job:
    return Job("quantize", "m", "", words, key or words[0], (), memory, 1)


def test_what_a_job_prints_and_how_it_ends_is_told(cluster: Cluster, tmp_path: Path) -> None:
    assert (cluster.at_once, cluster.described) == (9, "on 3 machines of a Ray cluster")
    cluster.submit(job("--version"), 1e8)
    cluster.submit(job("evaluate", "/nowhere"), 1e12)  # more than any machine has: one to itself
    good, bad = ends_of(cluster, "--version", "evaluate", seconds=WORKING)
    assert (good.code, good.printed[:5]) == (0, "qlab ")
    assert bad.code == 2
    assert "error:" in bad.complained
    assert (tmp_path / "--version.out").read_text() == good.printed
    assert cluster.running() == {}
    assert good.where.split()[0] == socket.gethostname()
    assert cluster.remarks == []


def test_machines_with_another_disk_are_told_and_get_no_more_jobs(cluster: Cluster, tmp_path: Path) -> None:
    class Another(type(tmp_path)):  # type: ignore[misc]
        def read_text(self, *_: object, **__: object) -> str:
            return "somebody else"

    cluster.wait, cluster.lock = 3.0, Another(tmp_path / ".lock")  # as if none of the machines had the disk of who gives them the job
    cluster.submit(job("--version"), 1e8)
    refused = end_of(cluster, "--version", WORKING)
    assert refused.code == LOST
    assert "no machine of the cluster had 1 core and 0.10 GB of memory for it; a machine was given no jobs" in refused.complained
    assert "does not see the folder" in refused.complained
    assert (len(cluster.refused), cluster.nodes) == (3, {})
    node, _ = cluster.refused.popitem()
    cluster.asked, cluster.lock = float("-inf"), tmp_path / ".lock"
    keys = [f"k{number}" for number in range(3)]
    for key in keys:
        cluster.submit(job("--version", key=key), 1e8)
    ends = ends_of(cluster, *keys, seconds=WORKING)
    assert {(end.code, end.where.split()[1]) for end in ends} == {(0, node[:6])}  # all on the one that is left


def test_a_job_that_comes_to_another_disk_is_tried_elsewhere(cluster: Cluster, tmp_path: Path) -> None:
    cluster.submit(job("--version"), 1e8)
    task = cluster.tasks["--version"]
    import ray

    (first, *_) = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    assert cluster._elsewhere(task, Started(first, "there", "there is no such folder")) is None
    assert cluster.tasks["--version"] is not task
    assert end_of(cluster, "--version", WORKING).code == 0
    assert cluster.remarks == ["a machine was given no jobs: there is no such folder"]


def test_a_job_that_failed_is_tried_again_on_another_machine(cluster: Cluster) -> None:
    seen = []
    for _ in range(4):  # the fourth time there is no other
        cluster.submit(job("evaluate", "/nowhere"), 1e8)
        seen.append(end_of(cluster, "evaluate", WORKING))
    assert {end.code for end in seen} == {2}
    assert len({end.where for end in seen[:3]}) == 3


def test_a_job_that_no_machine_can_take_ends_and_says_why(cluster: Cluster, tmp_path: Path) -> None:
    with_gpu = Cluster(cluster.logs, cluster.lock, 1, 1, wait=2.0)
    with_gpu.submit(job("--version"), 1e8)
    ended = end_of(with_gpu, "--version", WORKING)
    assert ended.code == LOST
    assert "no machine of the cluster had 1 core and a GPU and 0.10 GB of memory for it" in ended.complained
    with_gpu.wait, with_gpu.hope = 10 * WORKING, time.monotonic() - 11 * WORKING  # there has been none for longer than that
    with_gpu.submit(job("--version"), 1e8)
    assert end_of(with_gpu, "--version", WORKING).code == LOST  # at once
    cluster.wait, cluster.known, cluster.asked = 2.0, {"gone": {"CPU": 3.0, "memory": 1e13}}, time.monotonic() + 1e6
    cluster.submit(job("--version"), 9e12)  # to a machine that is gone before it could take it
    cluster.asked = float("-inf")
    assert "9000.00 GB of memory" in end_of(cluster, "--version", WORKING).complained
    cluster.submit(job("--version"), 9e12)  # tried again, it gets the largest of those that are left
    assert end_of(cluster, "--version", WORKING).code == 0


def test_a_driver_whose_own_machine_has_left_says_so(cluster: Cluster) -> None:
    assert cluster.own in cluster.nodes
    cluster.submit(job("--version"), 1e8)
    cluster.own, cluster.asked = "gone", float("-inf")
    with pytest.raises(UserError, match="this machine has left the Ray cluster"):
        end_of(cluster, "--version", WORKING)
    cluster.close()  # which goes on without it
    assert cluster.tasks == {}


def test_jobs_are_packed_by_what_they_will_take(cluster: Cluster) -> None:
    jobs = [job("--version", key=f"k{number}", memory=0.45 * MEMORY) for number in range(8)]
    for each in jobs:
        cluster.submit(each, each.memory)
    ended, most = dict[str, int](), Counter[str]()

    def all_ended() -> bool:
        ended.update({key: how.code for key, how in cluster.ended().items()})
        for where, count in Counter(work.where for work in cluster.running().values()).items():
            most[where] = max(most[where], count)
        return len(ended) == len(jobs)

    until(all_ended, WORKING)
    assert set(ended.values()) == {0}
    fit = {name[:6]: has["memory"] // jobs[0].memory for name, has in cluster.nodes.items()}
    assert sorted(fit.values()) == [1, 2, 2]  # each node has cores for three
    assert {where: count for where, count in most.items() if count > fit[where.split()[1]]} == {}
    assert sum(most.values()) > 2  # they did share the work


def test_a_cancelled_job_ends_in_order(cluster: Cluster, tmp_path: Path) -> None:
    mark = str(tmp_path / "made")
    cluster.submit(job(*WALK, mark), 1e8)
    until(lambda: (tmp_path / "made").exists(), WORKING)
    cluster.cancel("quantize")
    assert end_of(cluster, "quantize", WORKING).code not in (0, LOST)
    until(lambda: of_job(mark) == [], WORKING)


def test_nothing_outlives_a_driver_that_is_killed(nodes: Nodes, tmp_path: Path) -> None:
    mark = str(tmp_path / "made")
    (tmp_path / ".lock").write_text("owner")
    script = f"""
import time
from pathlib import Path
from qlab.sweep.workers.connecting import connect
from qlab.sweep.jobs import Job
cluster = connect({nodes.address!r}, Path({str(tmp_path)!r}), Path({str(tmp_path / ".lock")!r}), 1, "cpu")
cluster.submit(Job("quantize", "m", "", {(*WALK, mark)!r}, "k"), 1e8)
time.sleep(600)
"""
    driver = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    until(lambda: (tmp_path / "made").exists(), WORKING)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    until(lambda: of_job(mark) == [], WORKING)


def test_the_same_bytes_and_figures_as_on_one_machine(nodes: Nodes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, one, many = tmp_path / "plan.yaml", tmp_path / "one", tmp_path / "many"
    file.write_text(PLAN)
    assert call(["sweep", str(file), "--out", str(one)]) == 0
    capsys.readouterr()
    assert call(["sweep", str(file), "--out", str(many), "--ray", nodes.address]) == 0
    assert "4 to do" in capsys.readouterr().out
    made = [{path.relative_to(out): path for path in (out / "artifacts").rglob("*") if path.is_file()} for out in (one, many)]
    assert made[0].keys() == made[1].keys()
    assert [name for name in made[0] if name.name != COST and made[0][name].read_bytes() != made[1][name].read_bytes()] == []
    tables = [pd.read_csv(out / "table.csv") for out in (one, many)]
    assert tables[0].equals(tables[1])
    begin = time.monotonic()
    assert call(["sweep", str(file), "--out", str(many), "--ray", nodes.address]) == 0
    assert "0 to do" in capsys.readouterr().out
    assert time.monotonic() - begin < 30


def test_a_machine_that_is_killed_in_mid_walk_costs_a_try(nodes: Nodes, tmp_path: Path) -> None:
    """The last test: a node is gone after it."""
    (tmp_path / ".lock").write_text("owner")
    (tmp_path / "jobs").mkdir()
    cluster = connect(nodes.address, tmp_path, tmp_path / ".lock", 1, "cpu")
    place, killed = tmp_path / "made", list[str]()

    def kill_where_it_works(progress: Progress) -> None:
        if progress.running and not killed and list(place.glob(".walk*/*")) and (working := of_job(str(place))):
            raylet = next(parent for parent in working[0].parents() if parent.name() == "raylet")
            assert raylet.pid != nodes.raylets()[0].pid  # the head has the cluster's own state, and too little memory for this job
            killed.extend(progress.where.values())
            raylet.kill()

    try:
        end = drive([job(*WALK, str(place), memory=0.6 * MEMORY)], Store(tmp_path / "jobs"), cluster, Patience(4, 600), kill_where_it_works)
    finally:
        cluster.close()
    assert killed
    assert len(end.done) == 1
    found = Store(tmp_path / "jobs").read("quantize")
    assert found is not None
    assert found.tries > 1
    assert (place / "gptq-w4g128" / "qlab.json").is_file()
    assert [path.name for path in place.iterdir() if not path.name.startswith(".")] == ["gptq-w4g128"]


@pytest.mark.parametrize(("address", "message"), [("nowhere", "expected auto"), ("127.0.0.1:9", "no Ray cluster at")])
def test_where_no_cluster_is_one_message_says_so(address: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        connect(address, tmp_path, tmp_path / ".lock", 1, "cpu")
