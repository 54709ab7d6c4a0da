"""A reader's progress, in `workspace/.progress.json`: exercises answered rightly, predictions, lessons run to
their end. It stays on this machine.

Only the copies in `workspace/` count, in whichever language: a lesson that `qlab run` or papermill executes leaves no progress.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from qlab.support.disk.lock import locked
from qlab.support.disk.whole import write_whole
from qlab.support.errors import UserError
from qlab.support.reading import read_json
from qlab.workbook.language.spoken import languages
from qlab.workbook.reader.workspace import WORKSPACE, copies

FILE, LOCK = ".progress.json", ".progress.lock"
NOTEBOOK = "JPY_SESSION_NAME"  # where Jupyter tells a kernel the file of the notebook that it was started for


def open_lesson_of_reader(workspace: Path = WORKSPACE) -> str:
    """The lesson whose copy in `workspace` this kernel runs; empty in every other process."""
    notebook = Path(os.environ.get(NOTEBOOK) or ".")
    folders = [copies(workspace, language).resolve() for language in languages()]
    return notebook.stem if notebook.suffix == ".ipynb" and notebook.parent.resolve() in folders else ""


def keep_right(exercise: str, workspace: Path = WORKSPACE) -> None:
    """Note that an exercise of the lesson that is open has been answered rightly."""
    _note(workspace, lambda entry: entry["right"].append(exercise) if exercise not in entry["right"] else None)


def keep_prediction(question: str, predicted: str | float, workspace: Path = WORKSPACE) -> None:
    """Note what the reader predicts in the lesson that is open."""
    _note(workspace, lambda entry: entry["predicted"].update({question: predicted}))


def kept_prediction(question: str, workspace: Path = WORKSPACE) -> str | float | None:
    """What the reader predicted before in the lesson that is open; None where nothing was."""
    return read_progress(workspace).get(open_lesson_of_reader(workspace), {}).get("predicted", {}).get(question)


def keep_finished(workspace: Path = WORKSPACE) -> None:
    """Note that the lesson that is open has been run to its end."""
    _note(workspace, lambda entry: entry.update(finished=True))


def _note(workspace: Path, change: Any) -> None:
    lesson = open_lesson_of_reader(workspace)
    if not lesson:
        return
    with locked(workspace / LOCK, "the progress of the lessons", wait=True):
        progress = read_progress(workspace)
        change(progress.setdefault(lesson, {"right": [], "finished": False, "predicted": {}}))
        write_whole(workspace / FILE, json.dumps(progress, indent=1) + "\n")


def read_progress(workspace: Path = WORKSPACE) -> dict[str, dict[str, Any]]:
    """{lesson: {right: names of exercises, finished: whether it was run to its end, predicted: {question: prediction}}}.

    Raises:
        UserError: the file is damaged.
    """
    file = workspace / FILE
    if not file.exists():
        return {}
    try:
        found = read_json(file)
        return {
            lesson: {
                "right": [str(name) for name in e["right"]],
                "finished": bool(e["finished"]),
                "predicted": dict(e.get("predicted", {})),  # files of earlier versions have none
            }
            for lesson, e in found.items()
        }
    except (UserError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{file} is damaged, so the progress of the lessons is not known: 'qlab progress --erase' begins anew") from error


def erase_progress(workspace: Path = WORKSPACE) -> None:
    """Forget all progress; the copies of the lessons stay."""
    (workspace / FILE).unlink(missing_ok=True)
