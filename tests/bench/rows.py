"""Rows of a table: how far recipes move one model from itself, in how many bytes. What the benches that compare recipes have in common."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qlab.artifacts.artifact import Artifact, artifact_folder, make_artifact, quantize_model
from qlab.evaluate.arithmetic import FLOOR, in_bfloat16
from qlab.evaluate.kept import kept_logits
from qlab.evaluate.quality import Quality, measure_quality, paired_difference
from qlab.evaluate.tasks import CHOSEN, Score, changed, run_tasks
from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import OpenedModel, already_rounded, found_device, locate
from qlab.models.plain_copy import plain_copy
from qlab.models.texts.mixture import load_text
from qlab.models.texts.windows import read_windows
from qlab.recipes import Recipe, WalkedRecipe
from qlab.recipes.recipe import Walked
from qlab.support.errors import UserError
from qlab.workbook.refused import able, check_recipe

HEADER = f"{'':34} {'KL, nats a token':>20}  {'same top':>8}  {'p99':>8}  {'MB':>8}  {'seconds':>8}"


@dataclass(frozen=True)
class Subject:
    """A model, what recipes are calibrated and judged by, and its own predictions for the latter. `tasks` are lm-eval's, of at most
    `documents` documents each, from the folder `task_data`; `text` is what heldout-cloze is made of."""

    source: OpenedModel
    tokenizer: PreTrainedTokenizerBase
    calibration: Tensor
    held_out: Tensor
    expected: Sequence[Tensor]
    device: str
    work: Path
    tasks: Sequence[str] = ()
    documents: int = 200
    task_data: Path | None = None
    text: str = ""

    def loaded(self, source: OpenedModel) -> PreTrainedModel:
        """A model as it is judged: in FP32, its activations rounded where its checkpoint asks for it."""
        return load(source, torch.float32, self.device)


@dataclass
class Table:
    """Rows by their names, in the order in which they were found, printed as they are."""

    subject: Subject
    found: dict[str, Quality] = field(default_factory=dict)
    made: dict[str, Artifact] = field(default_factory=dict)
    originals: dict[str, Score] = field(default_factory=dict)

    def recipes(self, recipes: Iterable[Recipe]) -> None:
        """A row for each recipe that can take the model; for each other one a sentence, with the command that installs what is missing.

        Those that qlab walks over the model are made in one walk: `seconds` are then their own, without what they share.
        """
        subject = self.subject
        found = able({recipe.name: recipe for recipe in recipes}, lambda each: check_recipe(each, subject.source))
        walked = [recipe for recipe in found.values() if isinstance(recipe, Walked)]
        if len(walked) > 1:
            folder = artifact_folder(walked[0], subject.source, str(subject.work)).parent
            with self.reported("a walk for all"):
                quantize_model(subject.source, cast(list[WalkedRecipe], walked), subject.calibration, folder, device=subject.device)
        for name, recipe in found.items():
            with self.reported(name):
                made = make_artifact(recipe, subject.source, subject.calibration, str(subject.work), device=subject.device)
                self.made[name] = made
                self.model(name, subject.loaded(made.source), weight_bytes(made), made.seconds)

    @contextmanager
    def reported(self, name: str) -> Iterator[None]:
        """What fails within the context is told, and the other rows are made all the same."""
        try:
            yield
        except (UserError, RuntimeError) as error:
            print(f"{name:34} failed: {' '.join(str(error).split())[:200]}", flush=True)

    def model(self, name: str, model: nn.Module, size: int | None = None, seconds: float | None = None) -> Quality:
        """A row for a model that is in memory."""
        quality = measure_quality(model, self.subject.held_out, self.subject.expected, name)
        self.found[name] = quality
        spread = f"{quality.kl or 0:.5f} ± {quality.kl_stderr or 0:.5f}"
        row = f"{name:34} {spread:>20}  {quality.top1 or 0:8.1%}  {quality.kl_p99 or 0:8.3f}"
        row += f"  {'' if size is None else f'{size / 1e6:.2f}':>8}  {'' if seconds is None else f'{seconds:.1f}':>8}"
        print("  ".join([row, *(scored(score, self.originals.get(score.task)) for score in self.scores(model))]), flush=True)
        return quality

    def scores(self, model: nn.Module) -> list[Score]:
        """What the model scores in the subject's tasks: of each the metric of the choice with the largest likelihood."""
        if not self.subject.tasks or not isinstance(model, PreTrainedModel):
            return []
        subject = self.subject
        found = run_tasks(model, subject.tokenizer, subject.tasks, subject.documents, subject.task_data, subject.text)
        return [score for score in found if score.metric == CHOSEN]

    def pairs(self, pairs: Iterable[tuple[str, str]]) -> None:
        """By how much the KL of one row differs from another's, window by window, for those pairs that are both there."""
        for first, second in pairs:
            if first in self.found and second in self.found:
                print(f"{first} against {second}, window by window: KL {change(self.found[first], self.found[second])}", flush=True)


def scored(score: Score, original: Score | None = None) -> str:
    """A task's score in a row, and on which share of the documents the original chooses another answer."""
    other = changed(score, original) if original else None
    return f"{score.task} {score.value:.3f} ± {score.stderr:.3f}" + (f", {other[0]:.1%} ± {other[1]:.1%} other answers" if other else "")


def change(first: Quality, second: Quality) -> str:
    """By how much the first's KL differs from the second's, in pairs by window, as a share of the second's."""
    difference, error = paired_difference(first.kl_windows or [], second.kl_windows or [])
    mean = second.kl or 1
    return f"{difference / mean:+.1%} ± {error / mean:.1%}"


def weight_bytes(made: Artifact) -> int:
    """Of the artifact's weight files."""
    return sum(file.stat().st_size for file in made.source.files)


def subject_options(parser: argparse.ArgumentParser) -> None:
    """What says on which model and texts a table is made."""
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--windows", type=int, default=40, help="of the held-out text")
    parser.add_argument("--length", type=int, default=512, help="tokens a window, of both texts")
    parser.add_argument("--calibration-length", type=int, help="tokens a calibration window, where it is another")
    parser.add_argument("--text", default="python-reference", help="held-out text to judge by")
    parser.add_argument("--calibration", default="docstrings")
    parser.add_argument("--calibration-windows", type=int, default=64)
    parser.add_argument("--no-floor", action="store_true", help="leave out the original computed in BF16, slow on a CPU that imitates it")
    parser.add_argument("--work", type=Path, help="a folder that keeps what was quantized: the same command does not make it again")
    parser.add_argument("--tasks", default="", help="lm-eval's, with commas between, such as heldout-cloze")
    parser.add_argument("--documents", type=int, default=200, help="of each task, at most")
    parser.add_argument("--task-data", type=Path, help="a folder with mmlu/, hellaswag/ or lambada/ (qlab.evaluate.local_tasks)")


def opened(options: argparse.Namespace, work: Path) -> tuple[Table, PreTrainedModel]:
    """An empty table of the model that is asked for, and the model. `work`: a folder for the artifacts.

    A model whose weights are stored quantized is copied as FP16 first, for libraries that read nothing else.

    Raises:
        UserError: a model, text or device that cannot be used.
    """
    device, source, started = found_device(options.device), locate(options.model), time.perf_counter()
    work.mkdir(parents=True, exist_ok=True)
    if source.checkpoint.quantized:
        print(already_rounded(source))
        source = plain_copy(source, work / "plain" / source.name.rpartition("/")[2])
    tokenizer = load_tokenizer(source)
    length = options.calibration_length or options.length
    calibration = read_windows(options.calibration, tokenizer, length, options.calibration_windows).windows
    held_out = read_windows(options.text, tokenizer, options.length, options.windows).windows
    original = load(source, torch.float32, device)
    tasks = [name for name in options.tasks.split(",") if name]
    subject = Subject(
        source, tokenizer, calibration, held_out, kept_logits(original, held_out.split(1), work), device, work, tasks, options.documents,
        options.task_data, load_text(options.text) if tasks else "",
    )  # fmt: skip
    print(
        f"{source.name} on {torch.cuda.get_device_name() if device.startswith('cuda') else device}: {len(calibration)} calibration windows "
        f"of {length} tokens and {len(held_out)} held-out ones of {options.length}; {time.perf_counter() - started:.0f} s\n{HEADER}",
        flush=True,
    )
    table = Table(subject)
    if scores := table.scores(original):
        table.originals |= {score.task: score for score in scores}
        print("  ".join([f"{'the original':34}", *map(scored, scores)]), flush=True)
    if not options.no_floor:
        table.model(FLOOR, in_bfloat16(original))
    return table, original
