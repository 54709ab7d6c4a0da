"""Ray clusters of several nodes on this machine, each started by itself with resources of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from qlab import ROOT
from qlab.serve.server import free_port
from tests.sweep.workers.test_local import until

CORES = 3  # of a node
STARTING, WORKING, ATTEMPTS = 480, 480, 3  # seconds that a node, and a job, have on a busy machine; starts of a node
ENDING = 60  # seconds that a node has to end
# Ray's own limits, most of them 10 to 60 seconds, which a busy machine exceeds: to register a node, an agent and a worker, and to answer.
PATIENT = {
    "RAY_raylet_start_wait_time_s": "240", "RAY_raylet_client_num_connect_attempts": "240", "RAY_agent_register_timeout_ms": "240000",
    "RAY_worker_register_timeout_seconds": "240", "RAY_gcs_server_request_timeout_seconds": "240", "RAY_USAGE_STATS_ENABLED": "0",
}  # fmt: skip
# A node waits fifteen seconds for files in which its agents tell their ports, and ends if a busy machine has not started these by then.
# Without a dashboard they tell that they have none.
NO_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
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
    place: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, node: Node, *words: str) -> None:
        """Start a node, and wait until it says that it is there."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *words, *QUICK, "--node-ip-address=127.0.0.1"]
        log = self.place / f"{len(self.started)}.log"
        for _ in range(ATTEMPTS):
            name, port = secrets.token_hex(28), free_port()
            environment = os.environ | PATIENT | {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": name, **node.variables}
            own = [f"--runtime-env-agent-port={port}", f"--memory={node.memory}", f"--num-cpus={node.cores}"]
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [*node.before, *command, *own], env=environment, cwd=ROOT, stdout=output, stderr=output, start_new_session=True
                )  # fmt: skip
            self.started.append(process)  # before it is waited for: it has to be ended too
            ports = dict.fromkeys(NO_PORTS, -1) | {"runtime_env_agent_port": port}

            def there(process: subprocess.Popen[bytes] = process, name: str = name, ports: Mapping[str, int] = ports) -> bool:
                self.tell(name, ports)
                return process.poll() is not None or b"block forever" in log.read_bytes()

            until(there, STARTING)
            if process.poll() is None:
                return
            self.started.remove(process)
        raise AssertionError(log.read_text())

    def tell(self, name: str, ports: Mapping[str, int]) -> None:
        """Tell a node the ports of its agents in their place, as soon as there is a folder for that."""
        for session in self.place.glob("session_latest/"):
            for kind, port in ports.items():
                with suppress(FileExistsError), (session / f"{kind}_{name}").open("x") as file:
                    file.write(str(port))

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
    place = Path(tempfile.mkdtemp(prefix="q", dir="/tmp"))  # names of sockets have to be short
    port = free_port()
    found = Nodes(f"127.0.0.1:{port}", place)
    try:
        found.start(head, "--head", f"--port={port}", f"--temp-dir={place}", "--include-dashboard=false", "--no-monitor")
        for node in others:
            found.start(node, f"--address={found.address}")
        yield found
    finally:
        found.end()
        shutil.rmtree(place, ignore_errors=True)
