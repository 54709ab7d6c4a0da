"""The runtimes that qlab knows."""

from __future__ import annotations

from qlab.serve.runtimes.llamacpp import LlamaCpp
from qlab.serve.runtimes.ollama import Ollama
from qlab.serve.runtimes.runtime import Runtime
from qlab.serve.runtimes.tgi import TGI
from qlab.serve.runtimes.vllm import VLLM
from qlab.support.errors import UserError

RUNTIMES: dict[str, Runtime] = {runtime.name: runtime for runtime in (LlamaCpp(), VLLM(), TGI(), Ollama())}


def runtime_named(name: str) -> Runtime:
    """A runtime by its name.

    Raises:
        UserError: no such runtime.
    """
    if name not in RUNTIMES:
        raise UserError(f"no runtime {name!r}: expected one of {', '.join(RUNTIMES)}")
    return RUNTIMES[name]


def runtime_for(kind: str) -> Runtime:
    """The runtime of a format: the first here that serves it, else the first that would."""
    able = [runtime for runtime in RUNTIMES.values() if kind in runtime.kinds]
    if not able:
        raise UserError(f"no runtime that qlab knows serves {kind} models")
    return next((runtime for runtime in able if runtime.present()), able[0])
