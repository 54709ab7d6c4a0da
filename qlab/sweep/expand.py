"""From the sweep file to its jobs: for each model a walk that makes all formats, and what measures each of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

from qlab.artifacts.artifact import fit
from qlab.artifacts.block_shape import largest_block
from qlab.artifacts.budget import predict
from qlab.models.locating import kind_of
from qlab.models.opening import OpenedModel
from qlab.recipes import Fitted, parse
from qlab.sweep.jobs import ARTIFACTS, PROCESS, WEIGHTS_A_SECOND, Format, Job, Subject, key_of, said_of, texts
from qlab.sweep.plan import ORIGINAL, Sweep
from qlab.sweep.speed import speed_jobs
from qlab.walk.by_block import held_whole

LOGITS = 6  # copies of a window's logits in FP32 while two models are compared


def expand(sweep: Sweep, models: dict[str, Subject], out: Path) -> list[Job]:
    """The jobs that make and measure formats of these models, whose artifacts lie below the folder `out`, each after those that it needs.

    Raises:
        UserError: a text, a recipe or a runtime that cannot be used, or one of these with another.
    """
    calibration, evaluation = said_of(sweep.calibration.text), said_of(sweep.evaluation.text)
    recipes = [parse(name) for name in dict.fromkeys(sweep.recipes)]
    jobs = []
    for called, subject in models.items() if recipes else ():
        walk, formats = walk_of(sweep, called, subject, fit(subject.source, recipes), calibration, out)
        jobs += [walk, *(evaluation_of(sweep, each, subject.word, evaluation) for each in formats), *speed_jobs(sweep, formats)]
    return jobs


def walk_of(
    sweep: Sweep, called: str, subject: Subject, fitted: Sequence[Fitted], calibration: Sequence[str], out: Path
) -> tuple[Job, list[Format]]:
    """The walk that makes all formats of one model, and what there is to measure then: the original first.

    `calibration`: what results depend on of the text."""
    source, folder, text = subject.source, out / ARTIFACTS / called, sweep.calibration

    def words_of(recipes: Sequence[str]) -> list[str]:
        words = ["quantize", "--model", subject.word, "--out", str(folder), "--device", sweep.device]
        words += [word for recipe in recipes for word in ("--recipe", recipe)] + texts("--calibration", text.text)
        return [*words, "--windows", str(text.windows), "--length", str(text.length), "--wait"]  # for what a lost driver has not ended yet

    budget = predict(source, [each.recipe for each in fitted], (text.windows, text.length), None, sweep.device)
    inputs, words = [source.fingerprint, *calibration], words_of([each.recipe.name for each in fitted])
    walk = Job("quantize", called, "", tuple(words), key_of(words, inputs), (), budget.total, budget.seconds)
    place = str(source.path)
    formats = [Format(called, source, ORIGINAL, kind_of(source.path), subject.word, place, (source.fingerprint,))]
    for each in fitted:
        name, alone = each.recipe.name, key_of(words_of([each.recipe.name]), inputs)  # as if made alone: the others leave it as it is
        place = str(folder / name)
        formats.append(Format(called, source, name, each.recipe.format, place, place, (source.fingerprint, alone), (walk.key,)))
    return walk, formats


def evaluation_of(sweep: Sweep, measured: Format, reference: str, evaluation: Sequence[str]) -> Job:
    """The job that measures a format's quality against the model `reference`. `evaluation`: what results depend on of the text."""
    judged = sweep.evaluation
    words = ["evaluate", measured.word, "--reference", reference, "--no-floor", "--json", "--results", "", "--device", sweep.device]
    words += [*texts("--text", judged.text), "--window", str(judged.window), "--tokens", str(judged.tokens)]
    words += ["--tasks", ",".join(judged.tasks)] if judged.tasks else []
    source, weights = measured.source, measured.source.layout.weights
    models = predicting(source, bool(judged.tasks)) + predicting(source)  # the format, which answers the tasks; the reference
    memory = PROCESS + models + 4.0 * source.layout.shapes[source.layout.embedding][0] * judged.window * LOGITS
    seconds = 20 + 4 * weights * judged.tokens / WEIGHTS_A_SECOND
    key = key_of(words, [*measured.inputs, *evaluation])
    return Job("evaluate", measured.model, measured.recipe, tuple(words), key, measured.needs, memory, seconds, measured.place)


def predicting(source: OpenedModel, whole: bool = False) -> float:
    """Bytes of a model in FP32 while `qlab evaluate` has it predict: all of it where it is wanted `whole` or is not large, else a block and
    the head."""
    layout = source.layout
    held = layout.weights if held_whole(source, whole) else largest_block(layout).weights + prod(layout.shapes[layout.embedding])
    return 4.0 * held
