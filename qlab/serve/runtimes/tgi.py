"""TGI: maintained no longer, and still what many run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from qlab.plan.footprint import Footprint
from qlab.serve.deployment import Deployment
from qlab.serve.rounding import Rounding, half_outputs
from qlab.serve.runtimes.greedy import Greedy, from_openai
from qlab.serve.runtimes.runtime import Container

if TYPE_CHECKING:
    from openai import OpenAI

IMAGE = "ghcr.io/huggingface/text-generation-inference:3.3.7"  # its last release; read-only upstream since 2026-03
COMMENTS = ("TGI is read-only upstream since 2026-03; this is its last release. For something new take vLLM.",)


@dataclass(frozen=True)
class TGI:
    """`text-generation-launcher`, which is in its container or built from source; PyPI has none."""

    name = "tgi"
    label = "TGI"
    kinds = ("awq", "gptq", "bitsandbytes", "dense")
    caches = ("f16",)
    install = f"docker pull {IMAGE}"
    health = "/health"
    unknown_model = 200

    def present(self) -> bool:
        return shutil.which("text-generation-launcher") is not None

    def command(self, deployment: Deployment) -> list[str]:
        where = ["--hostname", deployment.host, "--port", str(deployment.port)]
        return ["text-generation-launcher", "--model-id", str(deployment.folder), *where, *flags(deployment)]

    def rounding(self, deployment: Deployment) -> Rounding:
        """All activations to FP16."""
        return half_outputs(torch.float16)

    def environment(self, deployment: Deployment) -> dict[str, str]:
        key = {"API_KEY": deployment.key} if deployment.key else {}
        return {"USAGE_STATS": "off", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"} | key

    def check_processor(self, deployment: Deployment) -> None:
        """It runs on any."""

    def finish(self, deployment: Deployment) -> None:
        """Nothing."""

    def greedy(self, url: str, client: OpenAI, model: str, prompt: Sequence[int], count: int) -> Greedy:
        return from_openai(client, model, prompt, count)

    def on_cpu(self, model: Footprint) -> None:
        """Not measured."""

    def container(self, deployment: Deployment) -> Container:
        where = ["--model-id", "/model", "--hostname", "0.0.0.0", "--port", "8080"]
        quiet = {"USAGE_STATS": "off", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HOME": "/tmp"}
        return Container(IMAGE, [*where, *flags(deployment)], 8080, self.health, "API_KEY", quiet, COMMENTS)


def flags(deployment: Deployment) -> list[str]:
    """The guide's flags: half of the context for the prompt."""
    method = (
        [] if deployment.kind == "dense" else ["--quantize", {"bitsandbytes": "bitsandbytes-nf4"}.get(deployment.kind, deployment.kind)]
    )
    limits = ["--max-input-tokens", str(deployment.context // 2), "--max-total-tokens", str(deployment.context)]
    return [*method, "--num-shard", str(max(1, deployment.gpus)), *limits, "--max-concurrent-requests", str(deployment.sequences)]
