"""Prompt and generation speed by llama-bench's conventions: pp N and tg N, one warm-up, repetitions, mean and spread."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Speed:
    """Tokens a second at batch 1: reading a prompt of `prompt_tokens`, and generating `generated_tokens` one by one."""

    prompt: float
    prompt_sd: float
    generation: float
    generation_sd: float
    prompt_tokens: int
    generated_tokens: int
    threads: int
    runtime: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_speed(model: PreTrainedModel, prompt_tokens: int, generated_tokens: int, repetitions: int, runtime: str) -> Speed:
    """Time `model` on random tokens (what they say does not matter to the arithmetic).

    Generation starts from one token, as llama-bench's tg does, so that the prompt's cost is not in it.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.config.vocab_size, (1, prompt_tokens), generator=generator).to(model.device)

    @torch.inference_mode()
    def read() -> None:
        model(input_ids=tokens, use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def generate() -> None:
        step, cache = tokens[:, :1], None
        for _ in range(generated_tokens):
            output = model(input_ids=step, past_key_values=cache, use_cache=True)
            step, cache = output.logits[:, -1:].argmax(-1), output.past_key_values

    prompt, prompt_sd = rate(read, prompt_tokens, repetitions)
    generation, generation_sd = rate(generate, generated_tokens, repetitions)
    threads = torch.get_num_threads() if model.device.type == "cpu" else 0
    return Speed(prompt, prompt_sd, generation, generation_sd, prompt_tokens, generated_tokens, threads, runtime)


def over_rounds(rounds: Sequence[Speed]) -> Speed:
    """The speed over several rounds: the mean, and a spread that holds both what varied within the rounds and between them.

    Between rounds the machine itself drifts (other programs, its clock), which repetitions in one go never see.
    """

    def pooled(name: str) -> dict[str, Any]:
        means = [getattr(speed, name) for speed in rounds]
        within = statistics.mean(getattr(speed, f"{name}_sd") ** 2 for speed in rounds)
        between = statistics.variance(means) if len(means) > 1 else 0.0
        return {name: statistics.mean(means), f"{name}_sd": math.sqrt(within + between)}

    return replace(rounds[0], **pooled("prompt"), **pooled("generation"))


def rate(work: Callable[[], None], tokens: int, repetitions: int) -> tuple[float, float]:
    """Tokens a second, mean and standard deviation over `repetitions`, after one warm-up."""
    work()
    rates = []
    for _ in range(repetitions):
        synchronize()
        started = time.perf_counter()
        work()
        synchronize()
        rates.append(tokens / (time.perf_counter() - started))
    return statistics.mean(rates), statistics.pstdev(rates)


def synchronize() -> None:
    """Wait for the device: CUDA returns before the work is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
