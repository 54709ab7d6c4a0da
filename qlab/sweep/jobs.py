"""The jobs of a sweep: commands of qlab with what they need, what they will take, and the key under which their result is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from qlab.artifacts.artifact import LIBRARIES, fit, model_folder
from qlab.artifacts.budget import predict
from qlab.models.opening import OpenedModel, locate
from qlab.models.texts.mixture import absolute, check_texts, files_of
from qlab.recipes import Fitted, parse
from qlab.support.versions import version_of
from qlab.sweep.plan import Sweep

PROCESS = 0.6e9  # bytes of a process that has loaded PyTorch and transformers
LOGITS = 6  # copies of a window's logits in FP32 while two models are compared
WEIGHTS_A_SECOND = 4e10  # that one thread multiplies, for the prediction alone


@dataclass(frozen=True)
class Job:
    """A command of qlab, `words`, for `model`, and for `recipe` where it is of one artifact alone; of a lesson, its name.

    `key`: of all that its result depends on. `needs`: keys of jobs that must be done before. `memory`: bytes predicted at the peak;
    `seconds` predicted, of one thread. `place`: the model or artifact that is measured; of a lesson, its page.
    """

    kind: str
    model: str
    recipe: str
    words: tuple[str, ...]
    key: str
    needs: tuple[str, ...] = ()
    memory: float = 0.0
    seconds: float = 0.0
    place: str = ""

    @property
    def name(self) -> str:
        """For people: quantize embedded, evaluate embedded nf4."""
        return " ".join(part for part in (self.kind, self.model, self.recipe) if part)


class Subject(NamedTuple):
    """A model of a sweep: `word` is how a command takes it from any folder."""

    word: str
    source: OpenedModel


def opened(sweep: Sweep) -> dict[str, Subject]:
    """The models of a sweep, by the names that they have in folders and tables; one that is named twice, or lies in two places, once.

    Raises:
        UserError: a model that cannot be used.
    """
    found = dict[str, Subject]()
    for name in sweep.models:
        source = locate(name)
        word = str(source.path) if Path(name).expanduser().exists() else name
        found.setdefault(source.fingerprint, Subject(word, source))
    return {model_folder(subject.source): subject for subject in found.values()}


def expand(sweep: Sweep, models: dict[str, Subject], out: Path) -> list[Job]:
    """The jobs that make and measure formats of these models, whose artifacts lie below the folder `out`, each after those that it needs.

    Raises:
        UserError: a text or a recipe that cannot be used.
    """
    calibration, evaluation = said_of(sweep.calibration.text), said_of(sweep.evaluation.text)
    recipes = [parse(name) for name in dict.fromkeys(sweep.recipes)]
    jobs = []
    for called, subject in models.items() if recipes else ():
        fitted = fit(subject.source, recipes)
        jobs += jobs_of(sweep, called, subject, fitted, calibration, evaluation, out)
    return jobs


def jobs_of(
    sweep: Sweep, called: str, subject: Subject, fitted: Sequence[Fitted], calibration: list[str], evaluation: list[str], out: Path
) -> list[Job]:
    """The jobs of one model: a walk that makes all formats, then an evaluation of the original and of each.

    `calibration` and `evaluation`: what results depend on of the two texts."""
    source, folder, text = subject.source, out / "artifacts" / called, sweep.calibration
    made = [each.recipe.name for each in fitted]

    def walk_of(recipes: Sequence[str]) -> list[str]:
        words = ["quantize", "--model", subject.word, "--out", str(folder), "--device", sweep.device]
        words += [word for recipe in recipes for word in ("--recipe", recipe)] + texts("--calibration", text.text)
        return [*words, "--windows", str(text.windows), "--length", str(text.length), "--wait"]  # for what a lost driver has not ended yet

    budget = predict(source, [each.recipe for each in fitted], (text.windows, text.length), None, sweep.device)
    inputs, words = [source.fingerprint, *calibration], walk_of(made)
    walk = Job("quantize", called, "", tuple(words), key_of(words, inputs), (), budget.total, budget.seconds)
    found = [walk]
    judged = sweep.evaluation
    shared = ["--reference", subject.word, "--no-floor", "--json", "--results", "", "--device", sweep.device, *texts("--text", judged.text)]
    shared += ["--window", str(judged.window), "--tokens", str(judged.tokens)]
    shared += ["--tasks", ",".join(judged.tasks)] if judged.tasks else []
    memory, seconds = evaluation_cost(sweep, source)
    for recipe in ("", *made):
        words = ["evaluate", str(folder / recipe) if recipe else subject.word, *shared]
        artifact = [key_of(walk_of([recipe]), inputs)] if recipe else []  # as if made alone: the other formats leave it as it is
        key = key_of(words, [source.fingerprint, *evaluation, *artifact])
        place, needs = (str(folder / recipe), (walk.key,)) if recipe else (str(source.path), ())
        found.append(Job("evaluate", called, recipe or "original", tuple(words), key, needs, memory, seconds, place))
    return found


def weights_of(source: OpenedModel) -> float:
    """How many weights a model has, near enough."""
    return sum(source.checkpoint.bytes_of(tensor) for tensor in source.layout.shapes) / 2


def evaluation_cost(sweep: Sweep, source: OpenedModel) -> tuple[float, float]:
    """Bytes at the peak of an evaluation, and seconds of one thread, as predicted."""
    judged, layout, weights = sweep.evaluation, source.layout, weights_of(source)
    logits = 4.0 * layout.shapes[layout.embedding][0] * judged.window * LOGITS
    return PROCESS + 8 * weights + logits, 20 + 4 * weights * judged.tokens / WEIGHTS_A_SECOND


def key_of(words: Sequence[str], inputs: Sequence[str]) -> str:
    """The key of a command: of its words without the places that it reads and writes, of these inputs, and of the versions of qlab and the
    libraries that compute."""
    places = ("--out", "--model", "--reference", "--text", "--calibration", "evaluate")
    said = [word for before, word in zip(("", *words), words) if before not in places]
    return hashlib.sha256(json.dumps([versions(), said, list(inputs)]).encode()).hexdigest()[:16]


@cache
def versions() -> dict[str, str]:
    """Of qlab and of every library that results depend on, by name."""
    return {name: version_of(name) for name in LIBRARIES}


def said_of(names: Sequence[str]) -> list[str]:
    """What results depend on of texts: their names as they stand in the file, and a hash of what the files among them hold.

    Raises:
        UserError: a text that cannot be read.
    """
    check_texts(names)
    digest = hashlib.sha256()
    for file in sorted({file for text in names for file in files_of(text)}):
        content = file.read_bytes()
        digest.update(f"{len(content)}:".encode() + content)
    return [*names, digest.hexdigest()]


def texts(option: str, named: Sequence[str]) -> list[str]:
    """The option for each text; files by their whole paths."""
    return [word for text in named for word in (option, absolute(text))]
