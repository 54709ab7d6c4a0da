"""What a lesson's process will hold at its peak, before it starts: from the model's shapes and the lesson's windows alone.

Parts that are there throughout are added up, of what is done one after the other the most counts. Factors were fitted to measured peaks;
`python -m tests.bench.lessons` prints both. What lessons start in processes of their own is not in it: artifacts are quantized beside it,
which `beside` foretells, and so work the libraries that are compared, which nothing foretells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import psutil

from qlab.artifacts.block_shape import largest_block
from qlab.artifacts.budget import predict, size_text, too_little, working
from qlab.evaluate.kept import IN_MEMORY
from qlab.models.opening import OpenedModel
from qlab.recipes import WalkedRecipe, parse
from qlab.support.errors import UserError
from qlab.walk.by_block import LARGE, fp32_bytes
from qlab.workbook.lesson import GROUP_SIZE, sampled

PROGRAM = 470e6  # Python, PyTorch, transformers and the kernel, once a lesson has opened its model
LIBRARIES = {"05_nf4": 90e6, "07_benchmarks": 120e6}  # what a lesson imports beside them: bitsandbytes and peft, lm-eval
WALKS = {  # the hungriest recipes that a lesson has artifacts of
    "01_principles": ["smooth-rtn-w8a8"],
    "02_awq": ["awq-gptq-w4g{}"],
    "03_gptq": ["awq-gptq-w4g{}", "tuned-w4g{}"],
    "04_gguf": ["q4_k_m"],
    "05_nf4": ["nf4"],
    "06_deployment": ["q4_k_m"],
    "07_benchmarks": ["awq-gptq-w4g{}", "q4_k_m"],
}
CURVES = {"02_awq": "awq-w4g{}", "03_gptq": "gptq-w4g{}"}  # by what a lesson quantizes its sample from more and more text
KEPT_A_TOKEN = 14  # of what a layer computes, in widths of the hidden state, that training keeps for its gradients


@dataclass(frozen=True)
class LessonBudget:
    """Bytes of memory on a CPU: of the program, the original in FP32, its predictions as far as they are kept in memory, the statistics of
    the layers that figures show, the most that one step needs beside these, and a walk in a process beside."""

    program: float
    model: float
    predictions: float
    statistics: float
    work: float
    beside: float

    @property
    def total(self) -> float:
        """Peak memory of the lesson's process."""
        return self.program + self.model + self.predictions + self.statistics + self.work

    def text(self, lesson: str) -> str:
        """The prediction, for people."""
        return (
            f"{lesson}: {size_text(self.total)} of memory predicted (the model in FP32 {size_text(self.model)}, its predictions "
            f"{size_text(self.predictions)}, statistics {size_text(self.statistics)}, work {size_text(self.work)}, the program "
            f"{size_text(self.program)}), and {size_text(self.beside)} in a process that quantizes"
        )

    def check(self, lesson: str) -> None:
        """Raises UserError where the machine has less memory than the lesson and what quantizes beside it need."""
        if said := too_little(self.total + self.beside, psutil.virtual_memory().available, "of memory", "here"):
            raise UserError(f"{lesson}: {said}; close programs, take a smaller model or a larger machine")


@dataclass(frozen=True)
class Sizes:
    """What the bytes depend on: the model, and the windows that a lesson cuts."""

    source: OpenedModel
    calibration: int  # tokens a window
    windows: int
    length: int

    @cached_property
    def model(self) -> float:
        """The weights in FP32."""
        return fp32_bytes(self.source)

    @cached_property
    def vocabulary(self) -> int:
        return self.source.layout.shapes[self.source.layout.head][0]

    @property
    def window(self) -> float:
        """The logits of one window."""
        return 4.0 * self.length * self.vocabulary

    @property
    def kept(self) -> float:
        """The original's logits for all windows, where these are held in memory."""
        return self.windows * self.window if self.windows * self.window <= IN_MEMORY else 0.0

    @property
    def another(self) -> float:
        """A second model at evaluation: whole, or its largest block or its head, and two windows' logits."""
        layout = self.source.layout
        head = 4.0 * prod(layout.shapes[layout.head])
        whole = self.model if self.model <= LARGE else max(4.0 * largest_block(layout).weights, head)
        return whole + 2 * self.window

    @cached_property
    def statistics(self) -> float:
        """H of every layer of the sample."""
        layout = self.source.layout
        shown = tuple(layout.block(index) for index in sampled(layout.count))
        return sum(4.0 * shape[1] ** 2 for name, shape in layout.linear.items() if name.startswith(shown))

    def quantizing(self, pattern: str) -> float:
        """What a recipe needs beside a block and its statistics."""
        block = largest_block(self.source.layout)
        recipe: WalkedRecipe = parse(pattern.format(GROUP_SIZE))
        return working(recipe, block.groups + block.expert, self.calibration, "cpu", block.weights)

    def training(self) -> float:
        """Activations that four windows leave for their gradients, and what is made of their logits."""
        layout, tokens = self.source.layout, 4 * self.calibration
        return 4.0 * tokens * (layout.count * KEPT_A_TOKEN * layout.hidden + 4 * self.vocabulary)


def lesson_budget(lesson: str, source: OpenedModel, chosen: Mapping[str, Any]) -> LessonBudget:
    """The budget of a lesson with the parameters `chosen` on the model `source`, on a CPU."""
    calibration = chosen["calibration_windows"], chosen["calibration_length"]
    sizes = Sizes(source, calibration[1], chosen["evaluation_windows"], chosen["evaluation_length"])
    statistics, work = parts(lesson, sizes)
    recipes: list[WalkedRecipe] = [parse(pattern.format(GROUP_SIZE)) for pattern in WALKS[lesson]]
    beside = max(predict(source, [recipe], calibration).total for recipe in recipes)
    program, predictions = PROGRAM + LIBRARIES.get(lesson, 0.0), sizes.kept if lesson != "06_deployment" else 0.0
    return LessonBudget(program, sizes.model, predictions, statistics, work, beside)


def parts(lesson: str, sizes: Sizes) -> tuple[float, float]:
    """The statistics that a lesson holds, and the most that one of its steps needs."""
    match lesson:
        case "02_awq" | "03_gptq":  # of parts of the text H is made again, beside that of all
            return sizes.statistics, max(sizes.statistics + sizes.quantizing(CURVES[lesson]), sizes.another)
        case "04_gguf":
            return sizes.statistics, max(sizes.quantizing("q4_k_m"), sizes.another)
        case "05_nf4":  # the model is trained twice, in four bits and whole, and judged as a new version
            both = sizes.model + 0.55 * sizes.model / 4
            return 0.0, max(sizes.statistics, both + max(sizes.training(), sizes.kept + sizes.another))
        case "06_deployment":
            return 0.0, 0.0
    return 0.0, sizes.another
