"""The runner: executes lessons by papermill, in order, and resumes; what is done with the same inputs is not done again."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbformat import ValidationError
from papermill.exceptions import PapermillExecutionError

from qlab import ROOT
from qlab.evaluate.store.provenance import machine
from qlab.models.named import named_folder
from qlab.models.opening import OpenedModel, locate
from qlab.models.texts.mixture import absolute, files_of
from qlab.recipes import parse
from qlab.support.disk.room import full_by, no_room
from qlab.support.disk.scratch import Scratch
from qlab.support.disk.whole import write_whole
from qlab.support.errors import UserError
from qlab.support.reading import path_of, read_json
from qlab.support.versions import code_hash
from qlab.workbook.batch.kernels import WatchedEngine, Watcher, last_printed, sweep_after_kernels
from qlab.workbook.crowd.kept import place_of
from qlab.workbook.language.lessons import read_lesson
from qlab.workbook.language.spoken import FOLDER, say, spoken
from qlab.workbook.parameters import check_values, parameters_of, resolve
from qlab.workbook.reader.about import NOTEBOOKS
from qlab.workbook.record import records_of
from qlab.workbook.refused import check_recipe, refusal

NEEDS = {"06_deployment": ("04_gguf",), "07_benchmarks": ("02_awq", "03_gptq", "04_gguf", "05_nf4")}
READ_LOADS = ("07_benchmarks",)  # lessons that show what lesson 6 measured under load
SUBJECTS = {"04_gguf": "q4_k_m", "06_deployment": "q4_k_m"}  # the recipe that a lesson is about, or serves
DONE, FAILED, SKIPPED, LEFT_OUT = "done", "failed", "not run", "left out"


@dataclass
class Outcome:
    """What became of a lesson: DONE (perhaps `earlier`), FAILED with cell and error, SKIPPED for the lesson it needs, or LEFT_OUT,
    since the model cannot be what the lesson is about; `error` says why. `peak_bytes`: the most that its process held, 0 where the
    system does not tell."""

    lesson: str
    state: str
    parameters: dict[str, Any]
    seconds: float = 0.0
    key: str = ""
    earlier: bool = False
    cell: int = 0
    error: str = ""
    records: dict[str, Any] = field(default_factory=dict)
    peak_bytes: int = 0

    @property
    def broken(self) -> bool:
        """Whether the run is to end with an error for it."""
        return self.state in (FAILED, SKIPPED)


Keeper = Callable[[Outcome], None]


def prepare(lessons: list[str], model: str, given: Mapping[str, str], weights: bool = True) -> dict[str, dict[str, Any]]:
    """The checked parameters of each lesson to run; without `weights`, the model's configuration is enough.

    Raises:
        UserError: a parameter or model that cannot be used.
    """
    known = {lesson: parameters_of(NOTEBOOKS / f"{lesson}.ipynb") for lesson in lessons}
    values = resolve(known, {**given, "model": model})
    source = locate(model, weights)
    _ = source.layout  # a model that no lesson can open is refused before the first of them
    for chosen in values.values():
        if named_folder(model) is None and Path(model).expanduser().exists():
            chosen["model"] = str(source.path)
        for text in ("calibration_text", "evaluation_text"):  # the kernel runs elsewhere
            if text in chosen:
                chosen[text] = absolute(chosen[text])
        if chosen.get("task_data"):
            chosen["task_data"] = str(path_of(chosen["task_data"]).resolve())
        check_values(chosen, source)
    return values


def run_lessons(
    values: Mapping[str, dict[str, Any]], out: Path, fresh: bool, watcher: Watcher, keep: Keeper = lambda outcome: None
) -> list[Outcome]:
    """Run each lesson of `values`, in order, into `out`; go on after a failure with what does not depend on it.

    `keep` is given each lesson that was executed and is done, before any later run takes it as done: what it keeps is not lost
    if this process is killed, and kept again if it is killed just then.
    """
    (out / "notebooks").mkdir(parents=True, exist_ok=True)
    WatchedEngine.watcher = staticmethod(watcher)
    outcomes: dict[str, Outcome] = {}
    for lesson, parameters in values.items():
        failed = [need for need in NEEDS.get(lesson, ()) if need in outcomes and outcomes[need].broken]
        if lesson in SUBJECTS and (reason := unfit(lesson, locate(parameters["model"]))):
            outcomes[lesson] = Outcome(lesson, LEFT_OUT, parameters, error=reason)
        elif failed:
            outcomes[lesson] = Outcome(lesson, SKIPPED, parameters, error=say("needs {lesson}, which did not finish", lesson=failed[0]))
        else:
            outcomes[lesson] = run_lesson(lesson, parameters, out, fresh, keep)
        watcher(lesson, 1, 1, outcomes[lesson].state)
    return list(outcomes.values())


def unfit(lesson: str, source: OpenedModel) -> str:
    """Why a model cannot be what a lesson is about; empty where it can."""
    subject = SUBJECTS.get(lesson)
    return refusal(parse(subject), lambda recipe: check_recipe(recipe, source)) if subject else ""


def run_lesson(lesson: str, parameters: dict[str, Any], out: Path, fresh: bool, keep: Keeper) -> Outcome:
    """Execute one notebook, or read the one that the same inputs made before."""
    key = lesson_key(lesson, parameters) + loads_key(lesson, parameters)
    finished = out / "notebooks" / f"{lesson}.ipynb"
    stamp = out / "notebooks" / f"{lesson}.json"
    if not fresh and (before := done_before(finished, stamp, key)):
        seconds, peak, records = before
        return Outcome(lesson, DONE, parameters, seconds, key, earlier=True, records=records, peak_bytes=peak)
    stamp.unlink(missing_ok=True)  # from here until the end, there is nothing to trust
    WatchedEngine.lesson = lesson
    started = time.monotonic()
    outcome = Outcome(lesson, DONE, parameters, key=key)
    try:
        execute(outcome, finished, out)
    finally:
        outcome.seconds, outcome.peak_bytes = time.monotonic() - started, WatchedEngine.peak
        sweep_after_kernels(*[ROOT / parameters["work"]] if "work" in parameters else [])
    if outcome.state == DONE:
        keep(outcome)
        write_whole(stamp, json.dumps({"key": key, "seconds": outcome.seconds, "peak_bytes": outcome.peak_bytes}) + "\n")
    return outcome


def execute(outcome: Outcome, finished: Path, out: Path) -> None:
    """Execute the notebook of an outcome's lesson, put it at `finished`, and say in the outcome what became of it."""
    with Scratch(out) as unfinished:
        notebook, written = read_lesson(NOTEBOOKS / finished.name), unfinished / finished.name
        try:
            papermill.execute_notebook(
                notebook, written, outcome.parameters, engine_name="qlab", progress_bar=False, cwd=str(ROOT), log_output=False
            )
        except PapermillExecutionError as error:
            said = f"{error.ename}: {error.evalue}".splitlines()[0]
            outcome.state, outcome.cell, outcome.error = FAILED, error.cell_index + 1, said
            if number := full_by(said):
                outcome.error = no_room(number, out)
        except (RuntimeError, TimeoutError) as error:  # the kernel died (out of memory, perhaps) or did not start
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            outcome.state, outcome.error = FAILED, said
            if printed := last_printed():
                outcome.error = say("{error}. Its kernel printed last: {printed}", error=said, printed=printed)
        if written.exists():
            without_paths(written)
            written.replace(finished)  # a failed notebook is kept for reading; without its stamp no run trusts it
            outcome.records = records_of(nbformat.read(finished, as_version=4))


def done_before(finished: Path, stamp: Path, key: str) -> tuple[float, int, dict[str, Any]] | None:
    """Seconds, peak of memory and records of an executed notebook whose stamp has this key; None where there is none, or one of the two
    is damaged."""
    try:
        before = read_json(stamp)
        if before.get("key") != key:
            return None
        return float(before["seconds"]), int(before["peak_bytes"]), records_of(nbformat.read(finished, as_version=4))
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError):  # nbformat's own among them
        return None


# Of a path that begins a string, or stands behind a comma in one as the texts of a mixture do, all but the last part.
FOLDERS = re.compile(r'(?:(?<=")|(?<=,))/(?:(?:[^",]|,(?!/))*/)?([^"/,]+)/?(?=[",])')


def without_paths(notebook: Path) -> None:
    """Take the folders of whoever ran it out of an executed notebook: papermill's own metadata, and what it injected."""
    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("papermill", None)
    for cell in content.cells:
        cell.metadata.pop("papermill", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = FOLDERS.sub(r".../\1", cell.source)
    nbformat.write(content, notebook)


def lesson_key(lesson: str, parameters: Mapping[str, Any]) -> str:
    """A hash of what a lesson depends on: notebook and language, parameters, model, texts, qlab's code and data, libraries, machine."""
    digest = hashlib.sha256()
    digest.update(nbformat.writes(read_lesson(NOTEBOOKS / f"{lesson}.ipynb")).encode())
    digest.update(spoken().encode())
    digest.update(json.dumps(parameters, sort_keys=True).encode())
    digest.update(locate(parameters["model"]).fingerprint.encode())
    for text in ("calibration_text", "evaluation_text"):
        for path in files_of(parameters[text]) if text in parameters else []:
            digest.update(path.read_bytes())
    for file in sorted([*(ROOT / "data").glob("*.*"), *FOLDER.glob(f"{spoken()}/*.po")]):
        digest.update(file.read_bytes())
    digest.update(code_hash().encode())
    digest.update(json.dumps(machine()).encode())
    digest.update(json.dumps(sorted(f"{found.name}=={found.version}" for found in distributions())).encode())
    return digest.hexdigest()[:16]


def loads_key(lesson: str, parameters: Mapping[str, Any]) -> str:
    """A hash of the loads that lesson 6 has left for `lesson`; empty where it reads none, or there are none. A sweep's jobs, planned before
    lesson 6 has run, go by `lesson_key` alone."""
    if lesson not in READ_LOADS or "work" not in parameters:
        return ""
    place = place_of(locate(parameters["model"]), ROOT / parameters["work"])
    return f"-{hashlib.sha256(place.read_bytes()).hexdigest()[:8]}" if place.is_file() else ""
