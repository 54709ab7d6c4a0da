"""A long load with clients that vanish and servers that are killed: nothing is lost unnoticed, counted twice, or left behind.

`make soak`. Requests come in tenths, at one concurrency: the first and the last in peace, between them tenths beside clients that go away
in the middle of an answer, and tenths in which the server, or its keeper, is killed. A witness before the server counts too.
Prints a line for each tenth and each promise; exit code 1 where one does not hold.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from qlab.artifacts.artifact import quantize_model
from qlab.models.loading import load_tokenizer
from qlab.models.opening import locate
from qlab.models.texts.prompts import load_prompts
from qlab.models.texts.windows import read_windows
from qlab.recipes import parse
from qlab.serve.deployment import Deployment
from qlab.serve.load import Level, run_load
from qlab.serve.runtimes.registry import RUNTIMES
from qlab.serve.runtimes.runtime import Runtime
from qlab.serve.server import Server, free_port, on_free_port, serving
from qlab.workbook.lesson import quiet

SERVED = {"llamacpp": "q4_k_m", "vllm": "awq-w4g128"}
TOKENS = 8  # of an answer
VANISHING = 8  # clients at a time
IN_PEACE, VANISH, KILL, KILL_KEEPER = "in peace", "clients vanish", "server killed", "its keeper killed"
TENTHS = [IN_PEACE, IN_PEACE, VANISH, VANISH, VANISH, KILL, KILL, KILL_KEEPER, IN_PEACE, IN_PEACE]
GROWTH = 1.05  # of qlab's own memory, from the first tenth to the last


@dataclass(frozen=True)
class Tenth:
    """One load: what went on beside it, what `run_load` says of it, what the witness saw, and what qlab's process held afterwards."""

    kind: str
    level: Level
    asked: int
    answered: int
    memory: int
    handles: int

    @property
    def counted(self) -> int:
        """Requests that qlab counts as answered, by the tokens that came."""
        return round(self.level.output_throughput * self.level.seconds) // TOKENS

    @property
    def sent(self) -> int:
        return self.level.requests - sum(count for error, count in self.level.errors.items() if error.startswith("not sent"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args()
    quiet()
    source = locate(o.model)
    calibration = read_windows("docstrings", load_tokenizer(source), 256, 4).windows
    console, held = Console(width=140), True
    with tempfile.TemporaryDirectory(prefix="qlab-bench-") as work:
        os.environ["TMPDIR"] = tempfile.tempdir = f"{work}/tmp"
        Path(work, "tmp").mkdir()
        for name, recipe in SERVED.items():
            runtime = RUNTIMES[name]
            if not runtime.present():
                console.print(f"{runtime.label} is not on this machine: {runtime.install}", markup=False)
                continue
            (made,) = quantize_model(source, [parse(recipe)], calibration, Path(work) / "artifacts")
            deployment = on_free_port(made.path, 256, o.at_once, threads=torch.get_num_threads())
            tenths = soak(runtime, deployment, o.requests // len(TENTHS), o.at_once, random.Random(o.seed))
            console.print(shown(runtime.label, tenths))
            for promise, found, holds in promises(tenths, Path(work, "tmp"), deployment.port):
                console.print(f"{'holds' if holds else 'BROKEN'}: {promise} ({found})", markup=False)
                held &= holds
    sys.exit(not held)


def soak(runtime: Runtime, deployment: Deployment, requests: int, at_once: int, generator: random.Random) -> list[Tenth]:
    """All tenths, of so many requests each; a new server after one that was killed."""
    texts = [entry["prompt"][:60] for entry in load_prompts()]
    found: list[Tenth] = []
    for kind in TENTHS:
        prompts = generator.choices(texts, k=requests)
        port = free_port()
        with serving(runtime, deployment) as server, witness(port, deployment.port) as program, beside(kind, server, program, generator):
            (level,) = run_load(f"http://127.0.0.1:{port}", server.model, prompts, [at_once], TOKENS, timeout=120)
            seen = asked(program)
        gc.collect()
        own = psutil.Process()
        found.append(Tenth(kind, level, seen["asked"], seen["answered"], own.memory_info().rss, own.num_fds()))
        print(f"{kind}: {level.requests} requests in {level.seconds:.0f} s, {found[-1].counted} answered, {level.errors}", flush=True)
    return found


@contextmanager
def witness(port: int, server_port: int) -> Iterator[subprocess.Popen[str]]:
    """The second count, listening on `port`."""
    command = [sys.executable, "-m", "tests.bench.witness", str(port), str(server_port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        asked(program)  # it listens when it answers
        yield program
        assert program.stdin
        program.stdin.close()


def asked(program: subprocess.Popen[str]) -> dict[str, int]:
    """What the witness has counted since it was asked before."""
    assert program.stdin
    assert program.stdout
    print(file=program.stdin, flush=True)
    return json.loads(program.stdout.readline())


@contextmanager
def beside(kind: str, server: Server, program: subprocess.Popen[str], generator: random.Random) -> Iterator[None]:
    """What goes on while the load runs."""
    stop = threading.Event()
    work = {VANISH: vanish, KILL: kill, KILL_KEEPER: kill}.get(kind)
    users = VANISHING if kind == VANISH else 1
    threads = [threading.Thread(target=work, args=(server, stop, kind, generator.random())) for _ in range(users) if work]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def vanish(server: Server, stop: threading.Event, kind: str, share: float) -> None:
    """Ask for long answers, and go away in the middle of them, without a word."""
    body = json.dumps({"prompt": "Return the", "max_tokens": 200, "stream": True, "ignore_eos": True})
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    while not stop.is_set():
        with suppress(OSError), socket.create_connection(address, timeout=30) as client:
            client.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            if share < 0.5:
                client.recv(64)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a reset
        stop.wait(0.05 + share / 4)


def kill(server: Server, stop: threading.Event, kind: str, share: float) -> None:
    """Kill the server, or the keeper that looks after it, when a drawn part of a second or so of the load has gone by."""
    stop.wait(0.3 + 1.5 * share)
    keeper = psutil.Process(server.process.pid)
    with suppress(psutil.NoSuchProcess):
        for process in [keeper] if kind == KILL_KEEPER else keeper.children():
            process.kill()


def promises(tenths: list[Tenth], temporary: Path, port: int) -> list[tuple[str, str, bool]]:
    """Each promise, what was found, and whether it holds."""
    lost = [sum(tenth.level.errors.values()) for tenth in tenths]
    peaceful = [number for tenth, number in zip(tenths, lost) if tenth.kind in (IN_PEACE, VANISH)]
    killed = [number for tenth, number in zip(tenths, lost) if tenth.kind not in (IN_PEACE, VANISH)]
    balance = [tenth.level.requests - tenth.counted - number for tenth, number in zip(tenths, lost)]
    differences = [(tenth.sent - tenth.asked, tenth.counted - tenth.answered) for tenth in tenths]
    first, last = tenths[0], tenths[-1]
    strays, files = processes_left(port), sorted(path.name for path in temporary.iterdir())
    return [
        (
            "each request is answered or lost, none both",
            f"{sum(map(abs, balance))} of {requests_in(tenths)} amiss",
            not any(balance),
        ),
        ("qlab and the witness count alike", f"asked and answered differ by {differences}", all(d == (0, 0) for d in differences)),
        ("nobody's request is lost because other clients vanish", f"{sum(peaceful)} lost", not any(peaceful)),
        ("a killed server is told by lost requests", f"{killed} lost", all(killed)),
        ("no process is left", ", ".join(strays) or "none", not strays),
        ("no file is left", ", ".join(files) or "none", not files),
        (
            "qlab's own memory is flat",
            f"{first.memory / 1e6:.0f} MB after the first tenth, {last.memory / 1e6:.0f} after the last",
            last.memory <= GROWTH * first.memory,
        ),
        ("its open handles are as many", f"{first.handles}, then {last.handles}", last.handles <= first.handles),
    ]


def requests_in(tenths: list[Tenth]) -> int:
    return sum(tenth.level.requests for tenth in tenths)


def processes_left(port: int) -> list[str]:
    """Children of this process, and whoever was told to serve on `port`."""
    time.sleep(1)
    found = psutil.Process().children(recursive=True)
    for process in psutil.process_iter(["cmdline"]):
        if f"--port={port}" in (process.info["cmdline"] or []):
            found.append(process)
    return [" ".join(process.cmdline())[:80] for process in found if process.status() != psutil.STATUS_ZOMBIE]


def shown(label: str, tenths: list[Tenth]) -> Table:
    """A row for each tenth."""
    table = Table("beside it", "requests", "answered", "witness: asked / answered", "lost", "seconds", "MB", "handles", title=label)
    for tenth in tenths:
        lost = ", ".join(f"{count} {error}" for error, count in tenth.level.errors.items()) or "0"
        row = (tenth.level.requests, tenth.counted, f"{tenth.asked} / {tenth.answered}", lost, f"{tenth.level.seconds:.0f}")
        table.add_row(tenth.kind, *map(str, row), f"{tenth.memory / 1e6:.0f}", str(tenth.handles))
    return table


if __name__ == "__main__":
    main()
