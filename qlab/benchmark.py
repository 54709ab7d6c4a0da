"""The workbook's table: every artifact of lessons 2 to 5 and the original, measured by one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qlab.evaluate.memory import disk_bytes
from qlab.evaluate.quality import Quality
from qlab.evaluate.runtime import RuntimeFigures, measure_runtime
from qlab.evaluate.speed import Speed
from qlab.lesson import Lesson
from qlab.peers.recipes import AutoAWQ, AutoGPTQ, BitsAndBytes
from qlab.process import run_isolated
from qlab.recipes import Recipe, parse

SUBJECTS: dict[str, Recipe | None] = {
    "FP16 original": None,
    "AWQ": parse("awq-w4g128"),
    "AWQ (AutoAWQ)": AutoAWQ(),
    "GPTQ": parse("gptq-w4g128"),
    "GPTQ (AutoGPTQ)": AutoGPTQ(),
    "GGUF Q8_0": parse("q8_0"),
    "GGUF Q4_K_M": parse("q4_k_m"),
    "NF4": parse("nf4"),
    "NF4 (bitsandbytes)": BitsAndBytes(),
}


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


def benchmark(lesson: Lesson, name: str, recipe: Recipe | None, prompt_tokens: int, generated_tokens: int, repetitions: int) -> Row:
    """Measure the artifact of `recipe`, made if need be, or the original where it is None."""
    artifact = lesson.artifact(recipe) if recipe else None
    folder = artifact.path if artifact else lesson.source.path
    figures: RuntimeFigures = run_isolated(measure_runtime, folder.resolve(), prompt_tokens, generated_tokens, repetitions).value
    quality = lesson.evaluate(recipe.name if recipe else "original", artifact or lesson.reference)
    return Row(name, disk_bytes(folder), figures.held_bytes, figures.speed, quality)


def results_table(measured: Sequence[Row]) -> dict[str, Any]:
    """The table as text, for notebook, terminal and report: `columns`, and `rows` of as many cells.

    Lists keep their order where a notebook file sorts a dictionary's names.
    """
    columns = ["format", "MB on disk", "MB held", "perplexity", "KL to FP16", "prompt tok/s", "generation tok/s", "runtime"]
    rows = [
        [
            row.name,
            f"{row.disk_bytes / 1e6:.1f}",
            f"{row.held_bytes / 1e6:.0f}",
            f"{row.quality.perplexity:.2f} ± {row.quality.stderr:.2f}",
            f"{row.quality.kl or 0:.5f} ± {row.quality.kl_stderr or 0:.5f}",
            f"{row.speed.prompt:.0f} ± {row.speed.prompt_sd:.0f}",
            f"{row.speed.generation:.1f} ± {row.speed.generation_sd:.1f}",
            row.speed.runtime,
        ]
        for row in measured
    ]
    return {"columns": columns, "rows": rows}
