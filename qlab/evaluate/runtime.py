"""How fast an artifact runs in a runtime, and what it holds in memory there, beside what arithmetic says of both."""

from __future__ import annotations

import math
import statistics
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qlab.evaluate.engines import RUNNERS
from qlab.evaluate.speed import Speed, measure_speed, over_rounds, prompt_ids
from qlab.models.opening import locate
from qlab.plan.footprint import Footprint, computing, footprint
from qlab.support.memory import free_on_gpu, peak_during

SPARE = 8  # tokens of context beyond prompt and answer


@dataclass(frozen=True)
class Memory:
    """Bytes beyond what the process held before: with the model `loaded`, and at the peak of `prompting` and `generating`.

    Of a server in processes of its own, all that they hold. `expected` is what the files' headers tell before anything is loaded.
    """

    loaded: int
    prompting: int
    generating: int
    expected: Footprint

    @property
    def predicted(self) -> float:
        return self.expected.total

    @property
    def predicted_peak(self) -> float | None:
        return self.expected.peak


@dataclass(frozen=True)
class Reading:
    """What one turn of one artifact in one runtime tells: its speed then, the memory of the process, seen at its first turn, and what
    was free on the GPU (bytes; without limit where there is none) with this and all else in place."""

    speed: Speed
    memory: Memory
    free: float = math.inf


@dataclass(frozen=True)
class RuntimeFigures:
    """Speed and memory; `ceiling` is the tokens/s that the measured memory bandwidth (bytes/s) allows in generation at batch 1."""

    speed: Speed
    memory: Memory
    bandwidth: float
    ceiling: float


def measuring(
    folder: Path, runner: str, prompt_tokens: int, generated_tokens: int, repetitions: int, dtype: str = "auto"
) -> Generator[Reading, None, None]:
    """Load the model or artifact of `folder` in the runtime `runner` of RUNNERS and measure it; and time it again as often as asked.

    Meant for a process of its own (qlab.support.processes.process.Isolated), which holds the model until it is closed.

    Raises:
        UserError, RuntimeError, OSError: what keeps the runtime from opening the folder or from computing.
    """
    vocabulary = locate(str(folder)).text_config["vocab_size"]
    context = prompt_tokens + generated_tokens + SPARE
    ids = prompt_ids(vocabulary, prompt_tokens)
    RUNNERS[runner].prepare(folder)
    before = RUNNERS[runner].held()
    with RUNNERS[runner].open(folder, context, dtype) as engine:
        loaded = engine.held() - before
        prompting = peak_during(lambda: engine.read(ids), engine.held) - before
        generating = peak_during(lambda: engine.generate(ids[0], generated_tokens), engine.held) - before
        expected = expected_of(folder, runner, context, engine.conditions["device"], engine.conditions["dtype"])
        memory, warm = Memory(loaded, prompting, generating, expected), True  # by what was done just now
        while True:
            speed = measure_speed(engine, vocabulary, prompt_tokens, generated_tokens, repetitions, warm)
            yield Reading(speed, memory, free_on_gpu())
            warm = False


def expected_of(folder: Path, runner: str, context: int, device: str, dtype: str) -> Footprint:
    """What the files' headers tell of memory in the runtime `runner` on the `device` that it uses."""
    expected = footprint(folder, context, 4 if dtype == "float32" else 2, device == "cuda")
    if device == "cpu":
        expected = RUNNERS[runner].on_cpu(expected)
    if (unpacked := RUNNERS[runner].unpacked.get(device)) is not None:
        expected = computing(expected, unpacked, torch.cuda.get_device_capability() if device == "cuda" else None)
    return expected


def step_bytes(rounds: Sequence[Reading]) -> float:
    """Bytes that a generated token reads, in the mean: the weights, and the cache as it is half way."""
    expected = rounds[0].memory.expected
    return expected.step + expected.cache * rounds[0].speed.generated_tokens / 2


def pooled(rounds: Sequence[Reading], bandwidth: float) -> RuntimeFigures:
    """Several rounds in one runtime as one: speeds with what varied between them in their spread, memory in the mean; and the ceiling
    by the `bandwidth` (bytes/s) at which as many bytes were read."""
    held = {name: round(statistics.mean(getattr(one.memory, name) for one in rounds)) for name in ("loaded", "prompting", "generating")}
    memory = replace(rounds[0].memory, **held)
    return RuntimeFigures(over_rounds([one.speed for one in rounds]), memory, bandwidth, bandwidth / step_bytes(rounds))
