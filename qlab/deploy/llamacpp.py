"""llama.cpp's own server (the xllamacpp wheel holds it), in a child process on the loopback interface."""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlab.errors import UserError
from qlab.evaluate.speed import Speed

START_LIMIT = 120  # seconds


@contextmanager
def serving(gguf: Path, threads: int = 2, context: int = 1024, limit: float = START_LIMIT) -> Iterator[str]:
    """Start the server on `gguf`, wait until it is ready, yield its base URL, stop it.

    Raises:
        UserError: it ended or was not ready in time; the message carries the last lines of its log.
    """
    port = free_port()
    command = [sys.executable, "-m", "qlab.deploy.llamacpp", str(gguf), f"--port={port}", f"--threads={threads}", f"--context={context}"]
    with tempfile.TemporaryFile() as log:
        # The pipe is the server's lifeline: it ends when standard input closes, however its parent dies.
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(server, url, limit, log)
            yield url
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def wait_until_ready(server: subprocess.Popen[bytes], url: str, limit: float, log: Any) -> None:
    """Poll /health until the model is loaded."""
    end = time.monotonic() + limit
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    log.seek(0)
    tail = "\n".join(log.read().decode(errors="replace").splitlines()[-10:])
    happened = f"was not ready within {limit:g} s" if server.poll() is None else f"ended with exit code {server.returncode}"
    raise UserError(f"llama.cpp's server {happened}. Its log ends:\n{tail}")


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """One JSON request to the server's own interface."""
    request = urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


@dataclass(frozen=True)
class Answer:
    """What came back, of how many tokens, and how soon."""

    text: str
    tokens: int
    seconds: float


def ask(url: str, prompt: str, tokens: int) -> Answer:
    """One completion through the server's OpenAI interface, by OpenAI's own client, as a program would ask; always the likeliest token."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    served = client.models.list().data[0].id
    started = time.perf_counter()
    answer = client.completions.create(model=served, prompt=prompt, max_tokens=tokens, temperature=0)
    seconds = time.perf_counter() - started
    return Answer(answer.choices[0].text, answer.usage.completion_tokens if answer.usage else 0, seconds)


def start(gguf: Path, port: int, threads: int, context: int) -> Any:
    """llama.cpp's server in this process, on 127.0.0.1; it serves for as long as the object lives."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf)
    parameters.hostnames, parameters.port = ["127.0.0.1"], port
    parameters.n_ctx, parameters.n_parallel = context, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.ui, parameters.offline = False, True
    return xllamacpp.Server(parameters)


def measure_speed(url: str, prompt_tokens: int, generated_tokens: int, repetitions: int, threads: int) -> Speed:
    """The timings that llama.cpp itself reports at `url`, by llama-bench's conventions: one warm-up, then repetitions."""
    ids = [10 + (7 * position) % 200 for position in range(prompt_tokens)]  # any tokens: what they say does not matter
    prompt, generation = [], []
    for repetition in range(repetitions + 1):
        read = post(url, "/completion", {"prompt": ids, "n_predict": 1, "cache_prompt": False})["timings"]
        body = {"prompt": ids[:1], "n_predict": generated_tokens, "ignore_eos": True, "cache_prompt": False}
        written = post(url, "/completion", body)["timings"]
        if repetition:
            prompt.append(read["prompt_per_second"])
            generation.append(written["predicted_per_second"])
    return Speed(
        statistics.mean(prompt), statistics.pstdev(prompt), statistics.mean(generation), statistics.pstdev(generation),
        prompt_tokens, generated_tokens, threads, "llama.cpp",
    )  # fmt: skip


def main() -> None:
    """The child: serve until told to stop or the parent is gone."""
    parser = argparse.ArgumentParser(description="serve one GGUF file with llama.cpp on 127.0.0.1")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=1024)
    options = parser.parse_args()
    server = start(options.gguf, options.port, options.threads, options.context)
    sys.stdin.buffer.read()
    del server


if __name__ == "__main__":
    main()
