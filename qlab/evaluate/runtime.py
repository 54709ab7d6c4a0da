"""How fast an artifact runs in a runtime, and what it holds in memory there, beside what arithmetic says of both."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from qlab.deploy.deployment import Deployment
from qlab.deploy.footprint import Footprint, computing, footprint
from qlab.evaluate.bandwidth import read_bandwidth
from qlab.evaluate.engines import RUNNERS
from qlab.evaluate.memory import peak_during
from qlab.evaluate.speed import Speed, measure_speed, over_rounds, prompt_ids

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
class RuntimeFigures:
    """Speed and memory; `ceiling` is the tokens/s that the measured memory bandwidth (bytes/s) allows in generation at batch 1."""

    speed: Speed
    memory: Memory
    bandwidth: float
    ceiling: float


def measure_runtime(
    folder: Path, runner: str, prompt_tokens: int, generated_tokens: int, repetitions: int, dtype: str = "auto"
) -> RuntimeFigures:
    """Load the model or artifact of `folder` in the runtime `runner` of RUNNERS, and measure. Meant for a process of its own."""
    vocabulary = Deployment(folder, "model").config["vocab_size"]
    context = prompt_tokens + generated_tokens + SPARE
    ids = prompt_ids(vocabulary, prompt_tokens)
    RUNNERS[runner].prepare(folder)
    before = RUNNERS[runner].held()
    with RUNNERS[runner].open(folder, context, dtype) as engine:
        loaded = engine.held() - before
        prompting = peak_during(lambda: engine.read(ids), engine.held) - before
        generating = peak_during(lambda: engine.generate(ids[0], generated_tokens), engine.held) - before
        speed = measure_speed(engine, vocabulary, prompt_tokens, generated_tokens, repetitions, warm=True)  # by what was done just now
    device = "cuda" if torch.cuda.is_available() else "cpu"
    expected = footprint(folder, context, 4 if speed.conditions["dtype"] == "float32" else 2, device == "cuda")
    if device == "cpu":
        expected = RUNNERS[runner].on_cpu(expected)
    if (unpacked := RUNNERS[runner].unpacked.get(device)) is not None:
        expected = computing(expected, unpacked, torch.cuda.get_device_capability() if device == "cuda" else None)
    step = expected.step + expected.cache * generated_tokens / 2  # the cache as it is half way
    bandwidth = read_bandwidth(round(step), device)
    return RuntimeFigures(speed, Memory(loaded, prompting, generating, expected), bandwidth, bandwidth / step)


def pooled(rounds: Sequence[RuntimeFigures]) -> RuntimeFigures:
    """Several rounds as one: speeds with what varied between them in their spread, the rest in the mean."""

    held = {name: round(statistics.mean(getattr(f.memory, name) for f in rounds)) for name in ("loaded", "prompting", "generating")}
    memory = Memory(**held, expected=rounds[0].memory.expected)
    bandwidth, ceiling = (statistics.mean(getattr(figures, name) for figures in rounds) for name in ("bandwidth", "ceiling"))
    return RuntimeFigures(over_rounds([figures.speed for figures in rounds]), memory, bandwidth, ceiling)
