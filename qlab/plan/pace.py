"""How fast a card can be with so many users at a time, by its published figures: what is read once for all, what is multiplied for each.

A step reads weights and caches and gives each user a token; prompts are read in steps of their own, which arithmetic bounds. Weights of
4 bits make reading short and no multiplication: kernels unpack them to FP16. Eight bits of weights and activations make both shorter.
Arithmetic of attention is left out; a model of some megabytes is bound by neither, but by starting kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from qlab import DATA
from qlab.plan.plan import BITS, GB, Shape, cache_bytes, fit, hardware

INT4 = "AWQ/GPTQ INT4 g128"
NONE = "none"  # in the place of a generation: no GPU
# Formats of BITS, the nearest to the original first. INT8 before FP8 as measured on three models of up to 135 million weights
# (docs/using.md); on models of 8B and more others measured it the other way round (arXiv 2411.02355).
ARITHMETIC = {"FP16": "fp16", "INT8 W8A8": "int8", "FP8 W8A8": "fp8", INT4: "fp16"}


@dataclass(frozen=True)
class Generation:
    """A generation of GPUs, by one `card` of data/hardware.yaml: what its tensor cores multiply, in 10¹² operations a second
    (`rates`)."""

    name: str
    capability: str
    card: Mapping[str, Any]
    rates: Mapping[str, float]


@dataclass(frozen=True)
class Request:
    """Tokens of a request's `prompt` and of its `answer`."""

    prompt: int
    answer: int


@cache
def generations() -> dict[str, Generation]:
    """data/generations.yaml, by name."""
    cards = {device["id"]: device for device in hardware()}
    entries = yaml.safe_load((DATA / "generations.yaml").read_text())
    return {entry["name"]: Generation(**entry | {"card": cards[entry["card"]]}) for entry in entries}


def gpus() -> tuple[str, ...]:
    """NONE, and the names of the generations."""
    return (NONE, *generations())


def facts() -> list[dict[str, Any]]:
    """A row for each generation: what its card reads and multiplies."""
    return [
        {
            "generation": one.name, "compute capability": one.capability, "card": one.card["name"], "GB/s": one.card["bandwidth_gb_s"],
            "FP16 TFLOPS": one.rates["fp16"], "INT8 TOPS": one.rates.get("int8", "—"), "FP8 TFLOPS": one.rates.get("fp8", "—"),
        }
        for one in generations().values()
    ]  # fmt: skip


def pace(shape: Shape, format_name: str, generation: Generation, users: int, request: Request) -> float | None:
    """Tokens/s that one card of the generation gives all `users` together at its published figures; None where the model and their caches
    do not fit, or the card has no arithmetic for the format.

    The cache counts as it is half-way through an answer; that it fits, as it is at the end.
    """
    rate = generation.rates.get(ARITHMETIC[format_name])
    whole = request.prompt + request.answer
    if rate is None or not fit(shape, format_name, whole, generation.card["memory_gb"], 1, users).holds:
        return None
    linear, ends = BITS[format_name]
    head = shape.vocabulary * shape.hidden
    read = min(shape.linear_parameters, users * shape.read_parameters) * linear / 8 + head * ends / 8  # experts: as many as tokens ask for
    reading = (read + cache_bytes(shape, request.prompt + request.answer // 2, users)) / GB / generation.card["bandwidth_gb_s"]
    blocks = 2 * shape.read_parameters / (rate * 1e12)  # seconds a token
    step = max(reading, users * (blocks + 2 * head / (generation.rates["fp16"] * 1e12)))
    return users / (step + users * blocks * request.prompt / request.answer)


def paces(shape: Shape, generation: Generation, users: int, request: Request) -> dict[str, float]:
    """`pace` of every format that the card has arithmetic and memory for, the nearest to the original first."""
    found = {name: pace(shape, name, generation, users, request) for name in ARITHMETIC}
    return {name: tokens for name, tokens in found.items() if tokens is not None}
