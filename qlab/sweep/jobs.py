"""The jobs of a sweep: commands of qlab with what they need, what they will take, and the key under which their result is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qlab import __version__
from qlab.artifacts.artifact import fit, model_folder
from qlab.artifacts.budget import predict
from qlab.models.opening import OpenedModel, locate
from qlab.models.texts.mixture import absolute, check_texts, files_of
from qlab.recipes import Fitted, parse
from qlab.sweep.plan import Sweep

PROCESS = 0.6e9  # bytes of a process that has loaded PyTorch and transformers
LOGITS = 6  # copies of a window's logits in FP32 while two models are compared
WEIGHTS_A_SECOND = 4e10  # that one thread multiplies, for the prediction alone


@dataclass(frozen=True)
class Job:
    """A command of qlab, `words`, for `model`, and for `recipe` where it is of one artifact alone.

    `key`: of all that its result depends on. `needs`: keys of jobs that must be done before. `memory`: bytes predicted at the peak;
    `seconds` predicted, of one thread.
    """

    kind: str
    model: str
    recipe: str
    words: tuple[str, ...]
    key: str
    needs: tuple[str, ...] = ()
    memory: float = 0.0
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """For people: quantize embedded, evaluate embedded nf4."""
        return " ".join(part for part in (self.kind, self.model, self.recipe) if part)


def expand(sweep: Sweep, out: Path) -> list[Job]:
    """All jobs of a sweep whose artifacts lie below the folder `out`, each after those that it needs.

    Raises:
        UserError: a model, a text or a recipe that cannot be used.
    """
    check_texts(sweep.calibration.text)
    check_texts(sweep.evaluation.text)
    recipes = [parse(name) for name in dict.fromkeys(sweep.recipes)]
    jobs = []
    for name in dict.fromkeys(sweep.models):
        source = locate(name)
        fitted = fit(source, recipes)
        jobs += jobs_of(sweep, name, source, fitted, out)
    return jobs


def jobs_of(sweep: Sweep, name: str, source: OpenedModel, fitted: Sequence[Fitted], out: Path) -> list[Job]:
    """The jobs of one model: a walk that makes all formats, then an evaluation of the original and of each."""
    called = model_folder(source)
    folder = out / "artifacts" / called
    text = sweep.calibration
    made = [each.recipe.name for each in fitted]
    words = ["quantize", "--model", where(name, source), "--out", str(folder), "--device", sweep.device]
    words += [word for recipe in made for word in ("--recipe", recipe)] + texts("--calibration", text.text)
    words += ["--windows", str(text.windows), "--length", str(text.length)]
    budget = predict(source, [each.recipe for each in fitted], (text.windows, text.length), None, sweep.device)
    walk = job("quantize", called, "", words, [source.fingerprint, *text.text], (), budget.total, budget.seconds)
    found = [walk]
    weights = sum(source.checkpoint.bytes_of(tensor) for tensor in source.layout.shapes) / 2  # as many as there are, near enough
    judged = sweep.evaluation
    logits = 4.0 * source.layout.shapes[source.layout.embedding][0] * judged.window * LOGITS
    seconds = 20 + 4 * weights * judged.tokens / WEIGHTS_A_SECOND
    for recipe in ("", *made):
        place = str(folder / recipe) if recipe else where(name, source)
        words = ["evaluate", place, "--reference", where(name, source), "--no-floor", "--json", "--results", "", "--device", sweep.device]
        words += [*texts("--text", judged.text), "--window", str(judged.window), "--tokens", str(judged.tokens)]
        words += ["--tasks", ",".join(judged.tasks)] if judged.tasks else []
        inputs = [source.fingerprint, *judged.text] + ([walk.key, recipe] if recipe else [])
        needs = (walk.key,) if recipe else ()
        found.append(job("evaluate", called, recipe or "original", words, inputs, needs, PROCESS + 8 * weights + logits, seconds))
    return found


def job(
    kind: str, model: str, recipe: str, words: Sequence[str], inputs: Sequence[str], needs: tuple[str, ...], memory: float, seconds: float
) -> Job:
    """A job, and its key: of the command without the places that it reads and writes, of these inputs, the files of texts among them, and
    of qlab's version."""
    said = [word for before, word in zip(("", *words), words) if before not in ("--out", "--model", "--reference", "evaluate")]
    digest = hashlib.sha256(json.dumps([__version__, said, list(inputs)]).encode())
    for file in sorted({file for text in inputs for file in files_of(text)}):
        digest.update(file.read_bytes())
    return Job(kind, model, recipe, tuple(words), digest.hexdigest()[:16], needs, memory, seconds)


def where(name: str, source: OpenedModel) -> str:
    """The model as a command takes it from any folder."""
    return str(source.path) if Path(name).expanduser().exists() else name


def texts(option: str, named: Sequence[str]) -> list[str]:
    """The option for each text; files by their whole paths."""
    return [word for text in named for word in (option, absolute(text))]
