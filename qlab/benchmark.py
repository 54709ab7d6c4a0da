"""The workbook's table: every artifact of lessons 2 to 5 and the original, measured by one protocol."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qlab.deploy.choose import leaves
from qlab.errors import UserError
from qlab.evaluate.memory import disk_bytes
from qlab.evaluate.quality import Quality, paired_difference
from qlab.evaluate.runtime import RuntimeFigures, measure_runtime
from qlab.evaluate.speed import Speed, over_rounds
from qlab.lesson import Lesson
from qlab.peers.recipes import AutoAWQ, AutoGPTQ, BitsAndBytes
from qlab.process import run_isolated
from qlab.progress import progress
from qlab.recipes import Recipe, parse
from qlab.wording import signed

ORIGINAL = "FP16 original"
FOUR_BIT: dict[str, Recipe] = {
    "AWQ by qlab": parse("awq-w4g128"),
    "AWQ by AutoAWQ": AutoAWQ(),
    "GPTQ by qlab": parse("gptq-w4g128"),
    "GPTQ by AutoGPTQ": AutoGPTQ(),
    "GGUF Q4_K_M": parse("q4_k_m"),
    "NF4 by qlab": parse("nf4"),
    "NF4 by bitsandbytes": BitsAndBytes(),
}
SUBJECTS: dict[str, Recipe | None] = {ORIGINAL: None, "GGUF Q8_0": parse("q8_0"), **FOUR_BIT}
NOTES = (
    "MB in memory: what the process that serves the format gained by loading it, its workspace included.",
    "Loss increase: against the original on the same text, paired window by window, so that the text's own spread is not in its ±.",
    "Tokens a second at batch 1; the ± is the spread over rounds in which the formats take turns, drift of the machine included.",
)


@dataclass(frozen=True)
class Row:
    """One line of the table. Memory is of the process, with the model loaded less before; speeds at batch 1."""

    name: str
    disk_bytes: int
    held_bytes: int
    speed: Speed
    quality: Quality

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def benchmark(
    lesson: Lesson, subjects: Mapping[str, Recipe | None], prompt_tokens: int, generated_tokens: int, repetitions: int, rounds: int
) -> list[Row]:
    """Measure the artifact of each recipe, made if need be, or the original where it is None.

    Speeds are taken in `rounds` over all subjects, a process of its own each time: a machine that grows slower or is busy for
    a while does so for all of them, and the spread between the rounds shows it.

    Raises:
        UserError: a single timing, which has no spread.
    """
    if rounds * repetitions < 2:
        raise UserError("one timing has no spread: give two rounds or more")
    artifacts = {name: lesson.artifact(recipe) if recipe else None for name, recipe in subjects.items()}
    folders = {name: (made.path if made else lesson.source.path).resolve() for name, made in artifacts.items()}
    measured: dict[str, list[RuntimeFigures]] = {name: [] for name in subjects}
    for name in progress(list(subjects) * rounds, "speeds", leave=False):
        measured[name].append(run_isolated(measure_runtime, folders[name], prompt_tokens, generated_tokens, repetitions).value)
    rows = []
    for name, recipe in subjects.items():
        quality = lesson.evaluate(recipe.name if recipe else "original", artifacts[name] or lesson.reference)
        held = round(statistics.mean(figures.held_bytes for figures in measured[name]))
        speed = over_rounds([figures.speed for figures in measured[name]])
        rows.append(Row(name, disk_bytes(folders[name]), held, speed, quality))
    return rows


def apart(difference: float, error: float) -> bool:
    """Whether a difference exceeds twice its error; what does not is called noise."""
    return abs(difference) > 2 * error


def best_of(measured: Sequence[Row]) -> dict[str, list[str]]:
    """Of the 4-bit formats: the nearest to the original, the smallest, the fastest; after each, what is not told apart from it."""
    rows = [row for row in measured if row.name in FOUR_BIT]

    def farther(row: Row, first: Row) -> bool:
        return apart(*paired_difference(row.quality.kl_windows or [], first.quality.kl_windows or []))

    def slower(row: Row, first: Row) -> bool:
        difference = first.speed.generation - row.speed.generation
        return apart(difference, math.hypot(first.speed.generation_sd, row.speed.generation_sd))

    def first_and_equals(key: Callable[[Row], float], differs: Callable[[Row, Row], bool]) -> list[str]:
        ordered = sorted(rows, key=key)
        return [row.name for row in ordered if row is ordered[0] or not differs(row, ordered[0])]

    return {
        "nearest to the original": first_and_equals(lambda row: row.quality.kl or 0, farther),
        "smallest": first_and_equals(lambda row: row.disk_bytes, lambda row, first: row.disk_bytes > 1.001 * first.disk_bytes),
        "fastest generation here": first_and_equals(lambda row: -row.speed.generation, slower),
    }


def advice_beside(measured: Sequence[Row]) -> list[dict[str, str]]:
    """The guide's decision tree, a row a leaf: when, what it says to take, and what was measured of the formats it names."""

    def figures(leaf: str) -> str:
        named = [row for row in measured if row.name in FOUR_BIT and row.name.split()[0] in re.findall(r"\w+", leaf)]
        return "; ".join(
            f"{row.name}: KL {row.quality.kl or 0:.5f}, {row.disk_bytes / 1e6:.1f} MB, {row.speed.generation:.0f} tok/s" for row in named
        )

    return [{"use": " → ".join(path), "the guide says": leaf, "measured here": figures(leaf)} for path, leaf in leaves().items()]


def results_table(measured: Sequence[Row]) -> dict[str, Any]:
    """The table as text, for notebook, terminal and report: `columns`, `rows` of as many cells, and `notes`.

    Lists keep their order where a notebook file sorts a dictionary's names.
    """
    columns = [
        "format", "MB on disk", "MB in memory", "perplexity", "loss increase (nats/token)", "KL to FP16 (nats/token)",
        "prompt tok/s", "generation tok/s", "run by",
    ]  # fmt: skip
    rows = [
        [
            row.name,
            f"{row.disk_bytes / 1e6:.1f}",
            f"{row.held_bytes / 1e6:.0f}",
            f"{row.quality.perplexity:.2f}",
            f"{signed(row.quality.loss_increase or 0, 4)} ± {row.quality.loss_increase_stderr or 0:.4f}" if row.name != ORIGINAL else "0",
            f"{row.quality.kl or 0:.5f} ± {row.quality.kl_stderr or 0:.5f}" if row.name != ORIGINAL else "0",
            f"{row.speed.prompt:.0f} ± {row.speed.prompt_sd:.0f}",
            f"{row.speed.generation:.1f} ± {row.speed.generation_sd:.1f}",
            row.speed.runtime,
        ]
        for row in measured
    ]
    return {"columns": columns, "rows": rows, "notes": list(NOTES)}
