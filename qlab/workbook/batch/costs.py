"""What a lesson takes: memory, disk and seconds, from the shapes of a model's weights, before anything starts.

Seconds were fitted to one run of all lessons on the embedded model (11 M weights) and one on SmolLM2 (135 M), on two cores with nothing
else to do, each with the parameters that a model of its size gets. Memory was fitted to earlier runs. On another machine seconds grow with
the square root of what its matrix products take (qlab.artifacts.duration), since Python, small operations and other programs differ by
less: with products of 8 and of 5 ps an operation, lesson 1 on SmolLM2 took 240 and 176 s, on eight windows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, prod, sqrt
from typing import Any

from qlab.artifacts.duration import speeds
from qlab.evaluate.kept import IN_MEMORY
from qlab.models.layout import Layout
from qlab.models.opening import OpenedModel
from qlab.models.resting import choosing, work
from qlab.models.resting.choosing import WHOLE, Sizes, resting_bytes, sizes_of
from qlab.plan.counted import read_by_a_token
from qlab.support.errors import UserError
from qlab.workbook.lesson import BLOCKS
from qlab.workbook.parameters import usual

EVALUATION = 1.5e-11  # seconds of a weight and a token, where a matrix product takes PRODUCT seconds a floating-point operation
PRODUCT = 8e-12
PROCESSES = 1.3e9  # bytes of the command and of a kernel that have loaded all libraries, before any model
HALF, SINGLE = 2.0, 4.0  # bytes of a weight in half precision and in FP32
CONTEXT = 0.65e9  # bytes of a GPU's memory that a process takes before any tensor; so measured on an H200
BATCH = 4  # windows that lesson 5 trains on at a time (qlab.release.finetune.Training)


@dataclass(frozen=True)
class Cost:
    """Of a lesson: `fixed` seconds on any model, how many `evaluations` of the whole text, and `rest`, seconds a million weights for all
    else. It makes so many `artifacts`, of `stored` bytes for each weight of a linear layer in all. `copies`: of the model in FP32 that
    are in memory at once, gradients and what other processes hold among them."""

    fixed: float
    evaluations: int
    rest: float
    artifacts: int
    stored: float
    copies: float


COSTS = {
    "01_principles": Cost(15, 13, 0.9, 4, 4.2, 3.5),
    "02_awq": Cost(15, 12, 3.0, 8, 4.4, 3.5),
    "03_gptq": Cost(24, 20, 3.6, 8, 4.4, 5.6),
    "04_gguf": Cost(21, 7, 0.95, 6, 5.7, 2.5),
    "05_nf4": Cost(21, 8, 1.5, 4, 2.2, 8.0),
    "06_deployment": Cost(23, 0, 2.2, 0, 0.0, 1.4),
    "07_benchmarks": Cost(45, 4, 4.6, 0, 0.0, 7.5),
}


EXPERIMENTS: dict[str, tuple[Callable[[Layout, int, int], float], ...]] = {
    "01_principles": (work.drawing,),
    "02_awq": (work.by_block, work.observing),
    "03_gptq": (work.by_block, work.observing, work.rounding),
    "04_gguf": (work.by_block, work.observing, work.settling),
    "05_nf4": (work.by_block, work.observing, work.training),
    "06_deployment": (work.changing,),
    "07_benchmarks": (work.by_block, work.changing),
}


@dataclass(frozen=True)
class Taken:
    """What a lesson takes: bytes of `memory` at its peak, of `disk` that stay, of `passing` disk while it runs; and seconds. `gpu`: bytes
    of the GPU's memory that its process takes at the peak, 0 where it computes on the CPU."""

    memory: float
    disk: float
    passing: float
    seconds: float
    gpu: float = 0.0


def cost_of(
    lesson: str, source: OpenedModel, parameters: Mapping[str, Any], holding: str = WHOLE, on_gpu: bool = False, room: float = inf
) -> Taken:  # fmt: skip
    """What a lesson takes with these parameters, as the cell of a lesson has them, with the model held so (qlab.models.resting.choosing).
    `room`: bytes of a GPU that are free before the lesson.

    Raises:
        UserError: a lesson that is none of qlab's.
    """
    if lesson not in COSTS:
        raise UserError(f"nothing is known of what lesson {lesson} takes: expected one of {', '.join(COSTS)}")
    cost, layout = COSTS[lesson], source.layout
    every = layout.weights
    linear = sum(map(prod, layout.linear.values()))
    rows, width = layout.shapes[layout.embedding]
    tokens = (parameters["evaluation_windows"] or usual("evaluation_windows", source)) * parameters["evaluation_length"]
    logits = SINGLE * tokens * rows
    read = read_by_a_token(layout, source.experts_per_token or 1) + rows * width
    statistics = min(1.0, BLOCKS / layout.count) * sum(SINGLE * inputs**2 for _, inputs in layout.linear.values())
    slower = sqrt(speeds("cpu")[0] / PRODUCT)
    seconds = cost.fixed + cost.evaluations * EVALUATION * read * tokens + cost.rest * every / 1e6
    passing, kept = (logits if logits > IN_MEMORY else 0.0), min(logits, IN_MEMORY)
    if holding == WHOLE:
        held = SINGLE * cost.copies * every + statistics + kept
        memory = PROCESSES + held
    else:
        held = beside_rest(lesson, source, parameters)
        held += 0.0 if on_gpu and passing else kept  # what a file has comes into the machine's memory
        rests = resting_bytes(source)  # in the machine's memory, on a GPU too: while another process has the GPU, it lies there
        memory = PROCESSES + rests + (0.0 if on_gpu else held)
        held += SINGLE * rows * width if holding == choosing.IN_MEMORY else rests
        passing += 2 * statistics + SINGLE * min(1.0, BLOCKS / layout.count) * linear  # two of them at a time, and changed weights
        if lesson == "05_nf4":  # what is trained lies beside it, GPTQ's weights decoded
            decoded = SINGLE * linear + HALF * (every - linear)
            of_gptq = choosing.held(Sizes(SINGLE * every, decoded, sizes_of(source).work), room - CONTEXT, on_gpu)
            if not on_gpu or choosing.IN_MEMORY in (holding, of_gptq):
                memory += SINGLE * every
            else:
                held = max(held, decoded + work.training(layout, 0, BATCH * parameters["calibration_length"]))
    disk = cost.stored * linear + HALF * cost.artifacts * (every - linear)
    return Taken(memory, disk, passing, slower * seconds, CONTEXT + held if on_gpu else 0.0)


def beside_rest(lesson: str, source: OpenedModel, parameters: Mapping[str, Any]) -> float:
    """Bytes that the hungriest of a lesson's experiments takes beside a model at rest."""
    tokens = BATCH * parameters["calibration_length"]
    return max(experiment(source.layout, parameters["evaluation_length"], tokens) for experiment in EXPERIMENTS[lesson])
