"""Ray clusters of several nodes on this machine, each started by itself with resources of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from qlab import ROOT
from qlab.serve.server import free_port
from tests.sweep.workers.test_local import until

CORES = 3  # of a node
STARTING, WORKING, ATTEMPTS = 240, 240, 5  # seconds that a node, and a job, have on a busy machine; starts of a node
ENDING = 60  # seconds that a node has to end
QUICK = ["--disable-usage-stats", "--object-store-memory=80000000", "--block"]


@dataclass(frozen=True)
class Node:
    """A node with so many bytes of `memory` for jobs and so many `cores`; `before`: words of a command that starts it; `variables` of its
    environment."""

    memory: int
    before: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    cores: int = CORES


@dataclass
class Nodes:
    """The nodes' processes, of which the first is the head, and the address of the cluster."""

    address: str
    started: list[subprocess.Popen[bytes]]

    def start(self, node: Node, log: Path, *words: str) -> None:
        """Start a node, and wait until it says that it is there. Ray gives up after fifteen seconds, which a busy machine may exceed."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *words, *QUICK, "--node-ip-address=127.0.0.1"]
        environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"} | node.variables
        for _ in range(ATTEMPTS):
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [*node.before, *command, f"--memory={node.memory}", f"--num-cpus={node.cores}"], env=environment, cwd=ROOT,
                    stdout=output, stderr=output, start_new_session=True,
                )  # fmt: skip
            self.started.append(process)  # before it is waited for: it has to be ended too
            until(lambda process=process: process.poll() is not None or b"block forever" in log.read_bytes(), STARTING)
            if process.poll() is None:
                return
            self.started.remove(process)
        raise AssertionError(log.read_text())

    def end(self) -> None:
        """End all nodes."""
        for process in self.started:
            process.terminate()
        for process in self.started:
            try:
                process.wait(ENDING)
            except subprocess.TimeoutExpired:
                process.kill()  # with it go its own processes
                process.wait()

    def raylets(self) -> list[psutil.Process]:
        """The process of each node that starts the jobs' workers; the head's first."""
        own = {node.pid for node in self.started}
        found = [process for process in psutil.process_iter(["name", "ppid"]) if process.info["name"] == "raylet"]
        return sorted((process for process in found if process.info["ppid"] in own), key=lambda process: process.info["ppid"])


@contextmanager
def ray_nodes(head: Node, *others: Node) -> Iterator[Nodes]:
    """A cluster of these nodes; all are gone afterwards."""
    place = tempfile.mkdtemp(prefix="q", dir="/tmp")  # names of sockets have to be short
    port = free_port()
    found = Nodes(f"127.0.0.1:{port}", [])
    try:
        words = ["--head", f"--port={port}", f"--temp-dir={place}", "--include-dashboard=false", "--no-monitor"]
        found.start(head, Path(place) / "head.log", *words)
        for number, node in enumerate(others):
            found.start(node, Path(place) / f"{number}.log", f"--address={found.address}")
        yield found
    finally:
        found.end()
        shutil.rmtree(place, ignore_errors=True)
