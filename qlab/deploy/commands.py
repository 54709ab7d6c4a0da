"""The commands that serve an artifact in vLLM, TGI and Ollama, with the guide's flags; and whether this machine has them."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from qlab import ROOT

TGI_IMAGE = "ghcr.io/huggingface/text-generation-inference:3.3.7"  # its last release; read-only upstream since 2026-03
FRENCH_SYSTEM_PROMPT = "Tu es un assistant technique précis. Réponds en français, de façon concise."
FRENCH_TEST_PROMPT = "Explique en deux phrases ce qu'est la quantification d'un modèle de langage."


@dataclass(frozen=True)
class Runtime:
    """A way to serve: what it is called, the formats it takes, whether it is here, and what to do if not."""

    name: str
    formats: tuple[str, ...]
    present: bool
    install: str


def runtimes() -> list[Runtime]:
    """The runtimes of the guide and llama.cpp, looked for on this machine."""
    return [
        Runtime("llama.cpp", ("gguf",), find_spec("xllamacpp") is not None, "pip install xllamacpp"),
        Runtime("vLLM", ("awq", "gptq"), vllm_program() is not None, "make vllm"),
        Runtime("TGI", ("awq", "gptq"), shutil.which("text-generation-launcher") is not None, f"docker pull {TGI_IMAGE}"),
        Runtime("Ollama", ("gguf",), shutil.which("ollama") is not None, "conda install -c conda-forge ollama"),
    ]


def vllm_program() -> str | None:
    """vLLM's command: on the PATH, or in the environment that `make vllm` made."""
    own = ROOT / ".venv-vllm" / "bin" / "vllm"
    return shutil.which("vllm") or (str(own) if own.exists() else None)


def vllm_command(folder: str, context: int, gpus: int = 1, port: int = 8000) -> str:
    """The guide's vLLM command, bound to loopback; `--quantization` is left out since vLLM reads it from config.json."""
    flags = ["--host", "127.0.0.1", "--port", str(port), "--tensor-parallel-size", str(gpus), "--gpu-memory-utilization", "0.90"]
    return shlex.join(["vllm", "serve", folder, *flags, "--max-model-len", str(context)])


def tgi_command(folder: str, method: str, context: int, gpus: int = 1, port: int = 8080) -> str:
    """The guide's TGI command: its last container, the model folder mounted at /data.

    Docker takes a relative name for that of a volume, and would mount an empty one: hence $PWD, which the shell fills in.
    """
    mounted = shlex.quote(f"{folder}:/data") if Path(folder).is_absolute() else '"$PWD"/' + shlex.quote(f"{folder}:/data")
    container = ["docker", "run", "--gpus", "all", "--shm-size", "1g", "-p", f"127.0.0.1:{port}:80", "-v"]
    flags = ["--model-id", "/data", "--quantize", method, "--num-shard", str(gpus)]
    limits = ["--max-input-tokens", str(context // 2), "--max-total-tokens", str(context)]
    return f"{shlex.join(container)} {mounted} {shlex.join([TGI_IMAGE, *flags, *limits])}"


def ollama_modelfile(gguf: str, context: int) -> str:
    """The guide's Modelfile: temperature, context, all layers on the GPU, a system prompt in French."""
    return (
        f"FROM ./{gguf}\nPARAMETER temperature 0.7\nPARAMETER num_ctx {context}\nPARAMETER num_gpu 99\n"
        f'SYSTEM """{FRENCH_SYSTEM_PROMPT}"""\n'
    )
