"""The workbook's table: every artifact of lessons 2 to 5 and the original, measured by one protocol in every runtime that is here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qlab.evaluate.quality import Quality, paired_difference
from qlab.evaluate.rounds import ABSENT, Protocol, measure_in_turns
from qlab.evaluate.runtime import RuntimeFigures
from qlab.evaluate.store.results import Figure, Subject, quality_figures, runtime_figures, score_figures
from qlab.evaluate.tasks import Score, changed, run_tasks
from qlab.models.loading import load
from qlab.models.opening import OpenedModel
from qlab.peers.recipes import AutoAWQ, AutoGPTQ, BitsAndBytes
from qlab.recipes import Recipe, parse
from qlab.support.memory import disk_bytes
from qlab.support.progress import progress
from qlab.support.steady import steady
from qlab.support.wording import Sentence, signed
from qlab.workbook.lesson import Lesson
from qlab.workbook.refused import check_recipe, refusal

ORIGINAL = "FP16 original"
EIGHT_BIT = "GGUF Q8_0"
DISTANCE = ("loss increase (nats/token)", "KL to FP16 (nats/token)")
NO_PEAK = "no peak is predicted for a runtime whose work space has not been measured"
NOTES = (
    "MB in memory: how much the process that runs the format grew by loading it; at the peak: the most while it works. "
    "Predicted: weights and cache, from the files' headers, and what llama.cpp and vLLM need for themselves; at the peak also what "
    "computing needs. vLLM's server counts with all its processes.",
    "The original, computed in BF16: what that arithmetic alone changes. A runtime in FP16, whose numbers are finer, changes less.",
    "Loss increase: against the original on the same text. It is paired window by window: its ± does not include how the windows differ.",
    "Tokens a second at batch 1. The ± is the spread over rounds in which the formats take turns; it includes slow changes of the machine. "
    "% of ceiling: the share of the tokens/s that this machine's memory bandwidth, measured, allows.",
)


@dataclass(frozen=True)
class Row:
    """One artifact in one runtime: its `figures` there, or the `problem` that there are none. Quality and scores are the artifact's,
    a hash of whose files is the `fingerprint`."""

    name: str
    runtime: str
    disk_bytes: int
    quality: Quality
    figures: RuntimeFigures | None
    problem: str = ""
    scores: list[Score] = field(default_factory=list)
    artifact: str = "original"
    fingerprint: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def subjects(group_size: int) -> dict[str, Recipe | None]:
    """What lesson 7 measures, by the names in its table: the original, and recipes with groups of `group_size`."""
    return {
        ORIGINAL: None,
        EIGHT_BIT: parse("q8_0"),
        "AWQ by qlab": parse(f"awq-w4g{group_size}"),
        "AWQ by AutoAWQ": AutoAWQ(group_size),
        "AWQ + GPTQ by qlab": parse(f"awq-gptq-w4g{group_size}"),
        "GPTQ by qlab": parse(f"gptq-w4g{group_size}"),
        "GPTQ by AutoGPTQ": AutoGPTQ(group_size=group_size),
        "GGUF Q4_K_M": parse("q4_k_m"),
        "NF4 by qlab": parse("nf4"),
        "NF4 by bitsandbytes": BitsAndBytes(),
    }


def prerequisites(source: OpenedModel, subjects: Mapping[str, Recipe | None]) -> list[dict[str, str]]:
    """What of `subjects` can be made of a model, and why not what cannot: a row for each."""
    reasons = {name: refusal(recipe, lambda recipe: check_recipe(recipe, source)) for name, recipe in subjects.items()}
    takes = Sentence("takes {type}", type=source.config["model_type"])
    return [{"format": name, takes: Sentence("no: {why}", why=why) if why else "yes"} for name, why in reasons.items()]


def benchmark(
    lesson: Lesson, subjects: Mapping[str, Recipe | None], runtimes: Sequence[str], protocol: Protocol,
    tasks: Sequence[str] = (), documents: int = 50, task_data: Path | None = None, text: str = "",
) -> list[Row]:  # fmt: skip
    """Measure the artifact of each recipe, made if need be, or the original where it is None, on the lesson's device; `tasks` on so many
    `documents` each.

    Raises:
        UserError: a runtime or task that there is not, or a single timing, which has no spread.
    """
    artifacts = {name: lesson.artifact(recipe) if recipe else None for name, recipe in subjects.items()}
    folders = {name: (made.path if made else lesson.source.path).resolve() for name, made in artifacts.items()}
    with lesson.aside():
        measured = measure_in_turns(folders, runtimes, replace(protocol, device=lesson.device))
    quality, scores = dict[str, Quality](), dict[str, list[Score]]()
    for name, recipe in progress(list(subjects.items()), "quality", leave=False):
        made = artifacts[name]
        quality[name] = lesson.evaluate(recipe.name if recipe else "original", made or lesson.reference)
        if tasks:
            whole = not lesson.at_rest
            model = load(made.source, lesson.dtype, lesson.device) if made and whole else lesson.reference
            predicting = None if whole else partial(lesson.predictor, made)
            scores[name] = run_tasks(model, lesson.tokenizer, tasks, documents, task_data, text, predicting=predicting)
    rows = []
    for one in measured:
        made, recipe = artifacts[one.name], subjects[one.name]
        identity = (recipe.name, made.source.fingerprint) if made and recipe else ("original", lesson.source.fingerprint)
        size = disk_bytes(folders[one.name])
        rows.append(Row(one.name, one.runtime, size, quality[one.name], one.figures, one.problem, scores.get(one.name, []), *identity))
    return rows


def tidy(measured: Sequence[Row], lesson: Lesson) -> list[dict[str, Any]]:
    """All figures, one a row, for `qlab results`."""
    model = f"{lesson.source.path.name}-{lesson.source.fingerprint[:8]}"
    under = {"dtype": str(lesson.dtype).removeprefix("torch."), "device": torch.device(lesson.device).type}
    text, reference = lesson.evaluation_reading.conditions, f"{lesson.source.name} {lesson.source.fingerprint[:8]}"
    found = list[tuple[Subject, list[Figure]]]()
    for row in of_formats(measured):
        figures = quality_figures(row.quality, text | under, reference) + score_figures(row.scores, under, text)
        found.append((Subject(model, row.artifact, row.fingerprint), figures))
    for row in measured:
        found.append((Subject(model, row.artifact, row.fingerprint, row.runtime), runtime_figures(row.figures, row.problem)))
    return [{"subject": asdict(subject), "figures": [asdict(figure) for figure in figures]} for subject, figures in found]


def apart(difference: float, error: float) -> bool:
    """Whether a difference exceeds twice its error; what does not is called noise."""
    return abs(difference) > 2 * error


def beyond_chance(correlation: float, count: int) -> bool:
    """Whether a rank correlation over so many pairs exceeds twice the standard deviation, 1/√(count − 1), of that of unrelated numbers."""
    return count > 1 and apart(correlation, 1 / math.sqrt(count - 1))


def of_formats(measured: Sequence[Row]) -> list[Row]:
    """One row for each format: of several runtimes the one that generates fastest, of those whose rounds agree where some do."""
    rows: dict[str, Row] = {}
    for row in measured:
        if row.name not in rows or pace(row) > pace(rows[row.name]):
            rows[row.name] = row
    return list(rows.values())


def generation(row: Row) -> float:
    """Tokens a second, 0 where there is no figure."""
    return row.figures.speed.generation if row.figures else 0.0


def pace(row: Row) -> tuple[bool, float]:
    """By which runs are ranked: those whose rounds agree before the others, then by their tokens a second."""
    return bool(row.figures and steady(row.figures.speed.generation, row.figures.speed.generation_sd)), generation(row)


def slower(row: Row, first: Row) -> bool:
    """Whether `row` is told apart from the `first` by speed; where the rounds of the first disagree, nothing that ran is."""
    if not row.figures or not first.figures:
        return True
    if not pace(first)[0]:
        return False
    spread = math.hypot(first.figures.speed.generation_sd, row.figures.speed.generation_sd)
    return apart(generation(first) - generation(row), spread)


def best_of(measured: Sequence[Row]) -> dict[str, list[str]]:
    """Of the 4-bit formats: the nearest to the original, the smallest, the fastest; after each, what is not told apart from it.

    The fastest is one whose rounds agree. Where those of none do, all that ran are not told apart.
    """
    rows = [row for row in of_formats(measured) if row.name not in (ORIGINAL, EIGHT_BIT)]

    def farther(row: Row, first: Row) -> bool:
        return apart(*paired_difference(row.quality.kl_windows or [], first.quality.kl_windows or []))

    def first_and_equals(key: Callable[[Row], Any], differs: Callable[[Row, Row], bool]) -> list[str]:
        ordered = sorted(rows, key=key)
        return [row.name for row in ordered if row is ordered[0] or not differs(row, ordered[0])]

    return {
        "nearest to the original": first_and_equals(lambda row: row.quality.kl or 0, farther),
        "smallest": first_and_equals(lambda row: row.disk_bytes, lambda row, first: row.disk_bytes > 1.001 * first.disk_bytes),
        "fastest generation here": first_and_equals(lambda row: tuple(-part for part in pace(row)), slower),
    }


def results_table(measured: Sequence[Row], floor: Mapping[str, Quality]) -> dict[str, Any]:
    """The table as text, for notebook, terminal and report: `columns`, `rows` of as many cells, and `notes`. `floor`: the noise floor by
    its name (qlab.evaluate.arithmetic), a row that has quality alone.

    Lists keep their order where a notebook file sorts a dictionary's names.
    """
    tasks = [column for score in measured[0].scores for column in score_columns(score)] if measured else []
    originals = {(score.task, score.metric): score for row in measured if row.name == ORIGINAL for score in row.scores}
    columns = [
        "format", "run by", "MB on disk", "MB predicted", "MB in memory", "MB predicted at the peak", "MB at the peak", "perplexity",
        *DISTANCE, *tasks, "prompt tok/s", "generation tok/s", "% of ceiling",
    ]  # fmt: skip
    rows, reasons, elsewhere = [], dict[str, int](), dict[str, None]()
    ran = {row.name for row in measured if row.figures}

    def no(reason: str) -> str:
        return Sentence("no ({number})", number=reasons.setdefault(reason, len(reasons) + 1))

    for row in measured:
        if ABSENT in row.problem and row.name in ran:  # a format that ran in another runtime needs no empty line
            elsewhere[row.problem] = None
            continue
        quality = [f"{row.quality.perplexity:.2f}", *(["0", "0"] if row.name == ORIGINAL else distance_cells(row.quality))]
        quality += [cell for score in row.scores for cell in score_cells(score, originals.get((score.task, score.metric)))]
        if row.figures:
            memory, speed = row.figures.memory, row.figures.speed
            held = [memory.predicted, memory.loaded, memory.predicted_peak, max(memory.prompting, memory.generating)]
            run = [f"{speed.prompt:.0f} ± {speed.prompt_sd:.0f}", f"{speed.generation:.1f} ± {speed.generation_sd:.1f}"]
            of_ceiling = f"{100 * speed.generation / row.figures.ceiling:.0f}"
            cells = [[no(NO_PEAK) if size is None else f"{size / 1e6:.0f}" for size in held], [*run, of_ceiling]]
        else:
            cells = [[no(row.problem)] * 4, [no(row.problem)] * 3]
        rows.append([row.name, row.runtime, f"{row.disk_bytes / 1e6:.1f}", *cells[0], *quality, *cells[1]])
    for name, found in floor.items():
        known = {"format": name, "perplexity": f"{found.perplexity:.2f}"} | dict(zip(DISTANCE, distance_cells(found)))
        rows.append([known.get(column, "—") for column in columns])
    return {
        "columns": columns,
        "rows": rows,
        "notes": [*NOTES, *(Sentence("no ({number}): {reason}", number=number, reason=why) for why, number in reasons.items()), *elsewhere],
    }


def score_columns(score: Score) -> list[str]:
    """The names of what `score_cells` gives."""
    name = f"{score.task} {score.metric}"
    return [name, Sentence("{task}: other answers", task=score.task)] if score.answers else [name]


def score_cells(score: Score, original: Score | None) -> list[str]:
    """A score, and where the task is one of choices the share of its documents on which the original chooses another answer."""
    cells = [share_cell(score.value, score.stderr)]
    if score.answers:
        other = changed(score, original) if original else None
        cells.append(share_cell(*other) if other else "—")
    return cells


def share_cell(share: float, error: float) -> str:
    """A share and its error in %."""
    return f"{100 * share:.1f} ± {100 * error:.1f} %"


def distance_cells(quality: Quality) -> list[str]:
    """Loss increase and KL, in as many digits as their errors need."""
    digits = min(9, max(5, 1 - math.floor(math.log10(quality.kl_stderr)))) if quality.kl_stderr else 5
    return [
        f"{signed(quality.loss_increase or 0, 4)} ± {quality.loss_increase_stderr or 0:.4f}",
        f"{quality.kl or 0:.{digits}f} ± {quality.kl_stderr or 0:.{digits}f}",
    ]
