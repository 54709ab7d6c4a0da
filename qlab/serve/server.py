"""A server's life: started, ready, and stopped with nothing left running, however whoever wanted it ends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

import psutil

from qlab.serve.deployment import Deployment
from qlab.serve.runtimes.runtime import Runtime, check, require
from qlab.support.errors import UserError
from qlab.support.memory import held_bytes

START_LIMIT = 300  # seconds until a server must be ready
STOP_LIMIT = 20  # seconds until a stopped one must be gone
LINES = 200  # of the log that are kept


@dataclass
class Server:
    """A running server: where it is, what its model is called there, and the last lines of its log."""

    url: str
    model: str
    process: subprocess.Popen[str]
    key: str | None = field(default=None, repr=False)
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LINES), repr=False)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def held_bytes(self) -> int:
        """Memory of all its processes; pages that several share are shared out."""
        members = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        return sum(map(held_bytes, members))

    def tail(self, count: int = 15) -> str:
        """The last lines that it wrote."""
        return "\n".join(list(self.lines)[-count:])


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def on_free_port(path: Path, context: int = 1024, sequences: int = 1, **options: Any) -> Deployment:
    """The model folder or GGUF file at `path`, for this machine alone, on a port that nobody uses."""
    return Deployment(path, "model", context, sequences, port=free_port(), **options)


@contextmanager
def serving(runtime: Runtime, deployment: Deployment, limit: float = START_LIMIT, log: Path | None = None) -> Iterator[Server]:
    """Start the server, wait until it is ready, yield it, stop it; its log goes to the file `log` where one is given.

    Raises:
        UserError: the runtime is missing or does not serve this format, the port is taken, or the server ended or was not
            ready within `limit` seconds; the message then carries the last lines of its log.
    """
    require(runtime)
    check(runtime, deployment.kind, deployment.folder.name, deployment.cache)
    runtime.check_processor(deployment)
    command = runtime.command(deployment)
    refuse_taken_port(deployment)
    process = subprocess.Popen(
        [sys.executable, "-m", "qlab.serve.supervisor", *command],
        env=os.environ | runtime.environment(deployment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C at a terminal is for whoever wanted the server, who then stops it in order
    )
    server = Server(deployment.url, deployment.name, process, deployment.key)
    reader = threading.Thread(target=keep_log, args=(server, log), daemon=True)
    reader.start()
    try:
        wait_until_ready(runtime, server, limit)
        runtime.finish(deployment)
        yield server
    finally:
        stop(process)
        reader.join(2)


def refuse_taken_port(deployment: Deployment) -> None:
    """Raise the UserError of a port that somebody listens on, or an address that this machine has not."""
    family = socket.AF_INET6 if ":" in deployment.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((deployment.host, deployment.port))
        except OSError as error:
            raise UserError(
                f"cannot serve on {deployment.host} port {deployment.port}: {error.strerror}; choose another (--port)"
            ) from error


def keep_log(server: Server, log: Path | None) -> None:
    """Read what the server writes, for as long as it does. A log file that cannot be written must not stop a server."""
    assert server.process.stdout
    file: IO[str] | None = None
    try:
        file = log.open("a", encoding="utf-8") if log else None
    except OSError as error:
        server.lines.append(f"(no log file: {error.strerror})")
    for line in server.process.stdout:
        text = line.rstrip("\n").replace(server.key, "***") if server.key else line.rstrip("\n")
        server.lines.append(text)
        if file:
            try:
                print(text, file=file, flush=True)
            except OSError as error:
                server.lines.append(f"(the log file ends here: {error.strerror})")
                with suppress(OSError):
                    file.close()
                file = None
    if file:
        file.close()


def wait_until_ready(runtime: Runtime, server: Server, limit: float) -> None:
    """Ask after its health until the model is loaded."""
    end = time.monotonic() + limit
    while time.monotonic() < end and server.alive:
        try:
            with urllib.request.urlopen(server.url + runtime.health, timeout=5) as answer:
                if answer.status == 200 and server.alive:
                    return
        except (OSError, HTTPException):
            time.sleep(0.1)
    if server.alive:
        happened = f"was not ready within {limit:g} s"
    else:
        happened = f"ended with exit code {server.process.returncode}" + (
            " (killed: out of memory?)" if server.process.returncode == 137 else ""
        )
        time.sleep(0.2)  # its last words
    raise UserError(f"{runtime.label}'s server {happened}. Its log ends:\n{server.tail()}")


def stop(process: subprocess.Popen[str]) -> None:
    """Close the keeper's lifeline and wait; what does not go by itself is killed."""
    assert process.stdin
    with suppress(OSError):
        process.stdin.close()
    try:
        process.wait(STOP_LIMIT)
    except subprocess.TimeoutExpired:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.wait()
