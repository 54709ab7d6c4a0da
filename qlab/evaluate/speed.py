"""Prompt and generation speed by llama-bench's conventions: pp N and tg N, one warm-up, repetitions, mean and spread.

There are at least as many repetitions as asked for. What takes milliseconds is repeated for a while: a single timing of it tells little.
Every runtime gets the same tokens and is timed by the same clock, ours; what it reports of itself stands beside it.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

TIMED = 0.3  # seconds of timings that a speed rests on at least
MOST = 100  # and as many repetitions at most, unless more are asked for


class Engine(Protocol):
    """A loaded model that can be timed. Its two calls return the seconds that the runtime itself reports, None where it reports none."""

    @property
    def label(self) -> str: ...
    @property
    def conditions(self) -> dict[str, str]:
        """Under what it runs: `device`, `dtype`, `kernel`, `threads`."""

    def read(self, ids: Sequence[int]) -> float | None:
        """Read a prompt, nothing of it known from before."""

    def generate(self, first: int, count: int) -> float | None:
        """From a prompt of one token, generate `count` tokens greedily, none of them the last."""

    def held(self) -> int:
        """Bytes that the process holds which has the model; of device memory where PyTorch computes on a GPU."""


@dataclass(frozen=True)
class Speed:
    """Tokens a second at batch 1: reading a prompt of `prompt_tokens`, and generating `generated_tokens` one by one.

    `reported` are the same two figures by the runtime's own clock, where it has one.
    """

    prompt: float
    prompt_sd: float
    generation: float
    generation_sd: float
    prompt_tokens: int
    generated_tokens: int
    runtime: str
    conditions: dict[str, str]
    prompt_reported: float | None = None
    generation_reported: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def prompt_ids(vocabulary: int, tokens: int) -> list[int]:
    """The prompt that every runtime reads: `tokens` token ids. What they say does not matter to the arithmetic."""
    generator = random.Random(0)
    return [generator.randrange(vocabulary // 16, vocabulary) for _ in range(tokens)]  # the first are often special tokens


def measure_speed(
    engine: Engine, vocabulary: int, prompt_tokens: int, generated_tokens: int, repetitions: int, warm: bool = False
) -> Speed:
    """Time `engine` on a prompt, and on generation from one token, as llama-bench's tg does, so that no prompt's cost is in it.

    It is warmed up first, as llama-bench does it, by the prompt and by one generated token, unless it is `warm`: has just done both.
    """
    ids = prompt_ids(vocabulary, prompt_tokens)
    if not warm:
        engine.read(ids)
        engine.generate(ids[0], 1)
    prompt, prompt_sd, prompt_reported = rate(lambda: engine.read(ids), prompt_tokens, repetitions)
    generation, generation_sd, generation_reported = rate(lambda: engine.generate(ids[0], generated_tokens), generated_tokens, repetitions)
    return Speed(
        prompt, prompt_sd, generation, generation_sd, prompt_tokens, generated_tokens, engine.label, engine.conditions,
        prompt_reported, generation_reported,
    )  # fmt: skip


def over_rounds(rounds: Sequence[Speed]) -> Speed:
    """The speed over several rounds: the mean, and a spread that holds both what varied within the rounds and between them.

    Between rounds the machine itself drifts (other programs, its clock), which repetitions in one go never see.
    """

    def pooled(name: str) -> dict[str, Any]:
        means = [getattr(speed, name) for speed in rounds]
        within = statistics.mean(getattr(speed, f"{name}_sd") ** 2 for speed in rounds)
        between = statistics.variance(means) if len(means) > 1 else 0.0
        reported = [value for speed in rounds if (value := getattr(speed, f"{name}_reported")) is not None]
        return {
            name: statistics.mean(means),
            f"{name}_sd": math.sqrt(within + between),
            f"{name}_reported": statistics.mean(reported) if reported else None,
        }

    return replace(rounds[0], **pooled("prompt"), **pooled("generation"))


def rate(work: Callable[[], float | None], tokens: int, repetitions: int) -> tuple[float, float, float | None]:
    """Tokens a second, mean and standard deviation over `repetitions` or as many as TIMED wants; and by the seconds that `work` returns."""
    rates: list[float] = []
    reported: list[float] = []
    spent = 0.0
    while len(rates) < repetitions or (spent < TIMED and len(rates) < MOST):
        started = time.perf_counter()
        own = work()
        seconds = time.perf_counter() - started
        spent += seconds
        rates.append(tokens / seconds)
        if own:
            reported.append(tokens / own)
    return statistics.mean(rates), statistics.pstdev(rates), statistics.mean(reported) if reported else None
