"""llama.cpp: its own server, which the xllamacpp wheel holds."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from qlab.plan.footprint import Footprint
from qlab.serve.cached import with_cache
from qlab.serve.deployment import Deployment
from qlab.serve.rounding import Rounding, eight_bit_inputs
from qlab.serve.runtimes.greedy import Greedy, aligned
from qlab.serve.runtimes.llamacpp_server import CACHE_TYPES, KEY
from qlab.serve.runtimes.runtime import Container

if TYPE_CHECKING:
    from openai import OpenAI

IMAGE = "ghcr.io/ggml-org/llama.cpp:server-b11549"  # the release in the pinned xllamacpp, whose version ends in its number
SAID = 300  # characters of a server's complaint that are passed on
SERVER = 29e6  # bytes of Python, the wheel and the keeper; measured


@dataclass(frozen=True)
class LlamaCpp:
    """The server of the wheel, in a process of its own; in a container, llama-server."""

    name = "llamacpp"
    label = "llama.cpp"
    kinds = ("gguf",)
    caches = tuple(CACHE_TYPES)
    install = "pip install xllamacpp"
    health = "/health"
    unknown_model = 200

    def present(self) -> bool:
        return find_spec("xllamacpp") is not None

    def command(self, deployment: Deployment) -> list[str]:
        options = {
            "host": deployment.host, "port": deployment.port, "name": deployment.name, "threads": deployment.threads,
            "context": deployment.context, "sequences": deployment.sequences, "gpu-layers": deployment.layers_on_gpu,
            "cache": deployment.cache,
        }  # fmt: skip
        words = [f"--{name}={value}" for name, value in options.items()]
        return [sys.executable, "-m", "qlab.serve.runtimes.llamacpp_server", str(deployment.gguf), *words]

    def rounding(self, deployment: Deployment) -> Rounding:
        """Inputs of linear layers to 8 bits."""
        return with_cache(eight_bit_inputs, deployment.cache)

    def environment(self, deployment: Deployment) -> dict[str, str]:
        return {KEY: deployment.key} if deployment.key else {}

    def check_processor(self, deployment: Deployment) -> None:
        """It runs on any."""

    def finish(self, deployment: Deployment) -> None:
        """Nothing."""

    def greedy(self, url: str, client: OpenAI, model: str, prompt: Sequence[int], count: int) -> Greedy:
        """By its own interface, which alone tells all tokens: log-probabilities lack those that end within a character."""
        asked = {"prompt": list(prompt), "n_predict": count, "temperature": 0, "n_probs": 1, "return_tokens": True}
        answer = post(url, "/completion", asked, client.api_key)
        return Greedy(answer["tokens"], aligned(answer["tokens"], answer["completion_probabilities"]))

    def on_cpu(self, model: Footprint) -> Footprint:
        return replace(model, overhead=model.overhead + SERVER)

    def container(self, deployment: Deployment) -> Container:
        words = ["--model", f"/model/{deployment.gguf.name}", "--alias", deployment.name, "--host", "0.0.0.0", "--port", "8080"]
        words += ["--ctx-size", str(deployment.context * deployment.sequences), "--parallel", str(deployment.sequences)]
        words += ["--n-gpu-layers", str(deployment.layers_on_gpu)] if deployment.gpus else ["--threads", str(deployment.threads)]
        words += ["--cache-type-k", deployment.cache, "--cache-type-v", deployment.cache] if deployment.cache != "f16" else []
        image = IMAGE.replace(":server-", ":server-cuda-") if deployment.gpus else IMAGE
        return Container(image, [*words, "--no-webui"], 8080, self.health, KEY, {"HOME": "/tmp"})


def post(url: str, path: str, body: dict[str, Any], key: str | None = None) -> dict[str, Any]:
    """One JSON request to the server's own interface.

    Raises:
        RuntimeError: what the server said where it answered with an error.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), headers), timeout=300) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace").strip()
        raise RuntimeError(f"the server answered {path} with {error.code}: {said[:SAID] or error.reason}") from error
