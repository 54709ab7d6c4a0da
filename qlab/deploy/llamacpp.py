"""llama.cpp: its own server, which the xllamacpp wheel holds."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import urllib.request
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qlab.deploy.deployment import Deployment
from qlab.deploy.runtime import Container

IMAGE = "ghcr.io/ggml-org/llama.cpp:server-b11549"  # the release in the pinned xllamacpp, whose version ends in its number
KEY = "LLAMA_API_KEY"  # where llama-server looks for it, and so do we


@dataclass(frozen=True)
class LlamaCpp:
    """The server of the wheel, in a process of its own; in a container, llama-server."""

    name = "llamacpp"
    label = "llama.cpp"
    kinds = ("gguf",)
    install = "pip install xllamacpp"
    health = "/health"
    margin, error = 0.4, 0.05  # it rounds activations to 8 bits; measured: right 0.16 and 0.031, Q8_0 for Q4_K_M 0.57 and 0.077
    unknown_model = 200

    def present(self) -> bool:
        return find_spec("xllamacpp") is not None

    def command(self, deployment: Deployment) -> list[str]:
        options = {
            "host": deployment.host, "port": deployment.port, "name": deployment.name, "threads": deployment.threads,
            "context": deployment.context, "sequences": deployment.sequences, "gpu-layers": deployment.layers_on_gpu,
        }  # fmt: skip
        words = [f"--{name}={value}" for name, value in options.items()]
        return [sys.executable, "-m", "qlab.deploy.llamacpp", str(deployment.gguf), *words]

    def environment(self, deployment: Deployment) -> dict[str, str]:
        return {KEY: deployment.key} if deployment.key else {}

    def finish(self, deployment: Deployment) -> None:
        """Nothing."""

    def container(self, deployment: Deployment) -> Container:
        words = ["--model", f"/model/{deployment.gguf.name}", "--alias", deployment.name, "--host", "0.0.0.0", "--port", "8080"]
        words += ["--ctx-size", str(deployment.context * deployment.sequences), "--parallel", str(deployment.sequences)]
        words += ["--n-gpu-layers", str(deployment.layers_on_gpu)] if deployment.gpus else ["--threads", str(deployment.threads)]
        image = IMAGE.replace(":server-", ":server-cuda-") if deployment.gpus else IMAGE
        return Container(image, [*words, "--no-webui"], 8080, self.health, KEY, {"HOME": "/tmp"})


def post(url: str, path: str, body: dict[str, Any], key: str | None = None) -> dict[str, Any]:
    """One JSON request to the server's own interface."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    with urllib.request.urlopen(urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), headers), timeout=300) as answer:
        return json.load(answer)


def start(
    gguf: Path, port: int, threads: int, context: int, host: str = "127.0.0.1", name: str = "", sequences: int = 1, gpu_layers: int = 0
) -> Any:
    """The server in this process; it serves for as long as the object lives. Each of `sequences` has `context` tokens."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(gguf)
    parameters.hostnames, parameters.port = [host], port
    parameters.n_ctx, parameters.n_parallel = context * sequences, sequences
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.n_gpu_layers = gpu_layers
    parameters.ui, parameters.offline = False, True
    if name:
        parameters.model_alias = {name}
    if key := os.environ.get(KEY):
        parameters.api_keys = [key]
    return xllamacpp.Server(parameters)


def main() -> None:
    """The child: serve until told to stop."""
    parser = argparse.ArgumentParser(description="serve one GGUF file with llama.cpp")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", default="")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--gpu-layers", type=int, default=0)
    o = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})  # before the server has threads of its own
    try:
        server = start(o.gguf, o.port, o.threads, o.context, o.host, o.name, o.sequences, o.gpu_layers)
    except (RuntimeError, OverflowError) as error:
        sys.exit(f"llama.cpp cannot serve {o.gguf.name}: {error} The file may be damaged, or memory too small for weights and cache.")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del server


if __name__ == "__main__":
    main()
