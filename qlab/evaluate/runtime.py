"""How fast an artifact runs, and what it holds in memory, in the runtime that can run it on this machine."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from qlab.deploy import llamacpp
from qlab.deploy.server import free_port
from qlab.evaluate.memory import held_bytes
from qlab.evaluate.speed import Speed, measure_speed
from qlab.model import Source, load, locate
from qlab.peers import autoawq, autogptq


@dataclass(frozen=True)
class RuntimeFigures:
    """Speed, and the bytes held with the model loaded less those held before."""

    speed: Speed
    held_bytes: int


def measure_runtime(folder: Path, prompt_tokens: int, generated_tokens: int, repetitions: int) -> RuntimeFigures:
    """Load the model or artifact of `folder` in its runtime and measure. Meant for a process of its own (run_isolated)."""
    source = locate(str(folder))
    before = held_bytes()
    with ExitStack() as stack:
        if gguf := sorted(folder.glob("*.gguf")):
            threads = torch.get_num_threads()
            port = free_port()
            server = llamacpp.start(gguf[0], port, threads, context=prompt_tokens + generated_tokens + 8)
            held = held_bytes() - before
            speed = llamacpp.measure_speed(f"http://127.0.0.1:{port}", prompt_tokens, generated_tokens, repetitions, threads)
            del server
            return RuntimeFigures(speed, held)
        method = source.config.get("quantization_config", {}).get("quant_method")
        if method == "awq":
            model, runtime = stack.enter_context(autoawq.running(folder)), "AutoAWQ"
        elif method == "gptq":
            model, runtime = stack.enter_context(autogptq.running(folder)), "AutoGPTQ"
        else:
            model, runtime = native(source), "transformers" + (" + bitsandbytes" if method else "")
        held = held_bytes() - before
        return RuntimeFigures(measure_speed(model, prompt_tokens, generated_tokens, repetitions, runtime), held)


def native(source: Source) -> PreTrainedModel:
    """The model in transformers: FP16 on a GPU, FP32 on a CPU, where half precision is emulated on most."""
    on_gpu = torch.cuda.is_available()
    return load(source, torch.float16 if on_gpu else torch.float32, "cuda" if on_gpu else "cpu", native=True)
