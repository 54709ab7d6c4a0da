"""vLLM: AWQ, symmetric GPTQ and compressed-tensors unchanged, in an environment of its own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING

import torch

from qlab import ROOT
from qlab.formats.compressed_tensors.scheme import rounds_inputs
from qlab.models.configuration import quantization_of
from qlab.plan.footprint import Footprint
from qlab.plan.plan import cache_bytes
from qlab.serve.cached import with_cache
from qlab.serve.deployment import Deployment
from qlab.serve.rounding import Rounding, half_outputs
from qlab.serve.runtimes.greedy import Greedy, from_openai
from qlab.serve.runtimes.runtime import Container
from qlab.support.errors import UserError

if TYPE_CHECKING:
    from openai import OpenAI

IMAGE = "vllm/vllm-openai:v0.32.0"  # the release that tests/serve/test_vllm.py holds qlab's checkpoints to
COMMENTS = (
    "--quantization is left out: vLLM reads it from config.json, and takes faster kernels than the guide's flag names.",
    "--gpu-memory-utilization 0.90 is the guide's; vLLM's own default is 0.92 now.",
)
SERVER = 1.16e9  # bytes that its two processes hold beside weights and cache, on a CPU; measured with models of 11 and 380 M weights
QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
ALONE = {"VLLM_HOST_IP": "127.0.0.1"}  # else it opens a socket towards a public address to learn its own


@dataclass(frozen=True)
class VLLM:
    """`vllm serve`, from the PATH or from the environment that `make vllm` makes."""

    name = "vllm"
    label = "vLLM"
    kinds = ("awq", "gptq", "compressed-tensors", "dense")
    caches = ("f16", "fp8")
    install = "make vllm"
    health = "/health"
    unknown_model = 404

    def present(self) -> bool:
        return program() is not None

    def command(self, deployment: Deployment) -> list[str]:
        where = ["--host", deployment.host, "--port", str(deployment.port)]
        return [*(program() or ["vllm", "serve"]), str(deployment.folder), *where, *flags(deployment)]

    def rounding(self, deployment: Deployment) -> Rounding:
        """All activations to FP16, or to BF16 where the artifact is marked so."""
        return with_cache(half_outputs(getattr(torch, dtype(deployment))), deployment.cache)

    def environment(self, deployment: Deployment) -> dict[str, str]:
        key = {"VLLM_API_KEY": deployment.key} if deployment.key else {}
        return QUIET | ALONE | key | ({} if deployment.gpus else cpu_settings(deployment))

    def check_processor(self, deployment: Deployment) -> None:
        if deployment.kind != "dense" and not deployment.gpus and not has_kernels():
            raise UserError(
                f"vLLM's kernels for {deployment.kind} on a CPU want AVX-512, which this processor lacks. "
                "Serve a GGUF file in llama.cpp ('qlab quantize --recipe q4_k_m'), or use a GPU (--gpus 1)"
            )
        if deployment.kind != "dense" and not deployment.gpus and marked_bfloat16(deployment) and multiplies_tiles():
            raise UserError(
                "this artifact is BF16, since FP16 may overflow in its model, and vLLM's BF16 attention stops at an illegal instruction on "
                "a CPU with AMX. Serve a GGUF file in llama.cpp ('qlab quantize --recipe q4_k_m'), or use a GPU (--gpus 1)"
            )

    def finish(self, deployment: Deployment) -> None:
        """Nothing."""

    def greedy(self, url: str, client: OpenAI, model: str, prompt: Sequence[int], count: int) -> Greedy:
        return from_openai(client, model, prompt, count)

    def on_cpu(self, model: Footprint) -> Footprint:
        """The weights are held twice: as the file has them, and packed for its kernel."""
        return replace(model, weights=2 * model.weights, overhead=SERVER, pool=pool(model.cached))

    def container(self, deployment: Deployment) -> Container:
        where = ["--model", "/model", "--host", "0.0.0.0", "--port", "8000"]
        return Container(
            IMAGE, [*where, *flags(deployment)], 8000, self.health, "VLLM_API_KEY",
            QUIET | {"HOME": "/tmp"} | ({} if deployment.gpus else cpu_settings(deployment)),
            COMMENTS if deployment.gpus else COMMENTS[:1],  # the second is of a flag that a CPU does not get
        )  # fmt: skip


def flags(deployment: Deployment) -> list[str]:
    """The guide's flags; on a CPU the artifact's dtype (AWQ allows no FP32), and nothing compiled."""
    words = [
        "--served-model-name",
        deployment.name,
        "--max-model-len",
        str(deployment.context),
        "--max-num-seqs",
        str(deployment.sequences),
        *(["--kv-cache-dtype", deployment.cache] if deployment.cache != "f16" else []),
    ]
    if deployment.gpus:
        return [*words, "--tensor-parallel-size", str(deployment.gpus), "--gpu-memory-utilization", "0.90"]
    return [*words, "--dtype", dtype(deployment), "--enforce-eager"]


def dtype(deployment: Deployment) -> str:
    """What vLLM computes in on a CPU: an artifact's own dtype, where BF16 says that FP16 may overflow; BF16 where activations are rounded
    to 8 bits, since vLLM's kernel for that ends its process on FP16.

    All else runs in FP16: unquantized models too, since BF16 attention failed on a CPU with AMX.
    """
    return "bfloat16" if marked_bfloat16(deployment) or rounds_inputs(quantization_of(deployment.config)) else "float16"


def marked_bfloat16(deployment: Deployment) -> bool:
    """Whether this is an artifact that says of itself that FP16 may overflow."""
    return deployment.kind != "dense" and "bfloat16" in (deployment.config.get("dtype"), deployment.config.get("torch_dtype"))


def cpu_settings(deployment: Deployment) -> dict[str, str]:
    """Room for the KV cache, threads as many as asked for on whatever cores are free, and the model in the engine's own process.

    In a third process, as vLLM has it by itself, the two wait for each other on cores that the model wants: with two cores it generates
    at half the speed (`make bench-runtimes`), holds 0.4 GB more and starts a third later. What vLLM fears of one process is that it
    cannot set the threads there; they are set here.
    """
    wanted = cache_bytes(deployment.shape, deployment.context, deployment.sequences)
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(pool(wanted) >> 30),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(deployment.threads),
    }


def pool(cache: float) -> int:
    """Bytes set aside for a KV cache of so many: whole GiB, since vLLM is told no others."""
    return max(1, ceil(cache / (1 << 30))) << 30


def has_kernels() -> bool:
    """Whether vLLM's CPU build has kernels for 4 bits on this processor: on x86 they are made of AVX-512."""
    able = torch.cpu.get_capabilities()
    return able.get("architecture") != "x86_64" or bool(able.get("avx512_f"))


def multiplies_tiles() -> bool:
    """Whether this processor has AMX."""
    return bool(torch.cpu.get_capabilities().get("amx_tile"))


def program() -> list[str] | None:
    """What serves the model that is named after it: the command on the PATH, or the server in the environment that `make vllm` made.

    There it is asked for by its module: the CPU build goes by another name than the command looks for.
    """
    if found := shutil.which("vllm"):
        return [found, "serve"]
    own = ROOT / ".venv-vllm" / "bin" / "python"
    return [str(own), "-m", "vllm.entrypoints.openai.api_server", "--model"] if own.exists() else None
