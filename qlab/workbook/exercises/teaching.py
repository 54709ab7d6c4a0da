"""For a class: copies of the lessons without the calls that show solutions, and a file with all solutions for who teaches.

The copies need qlab on the machine, and its source has the solutions: this keeps them out of the way, it does not hide them.
"""

from __future__ import annotations

import inspect
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat

from qlab.support.disk.scratch import Scratch
from qlab.support.errors import UserError
from qlab.workbook.exercises.answer import Asked
from qlab.workbook.exercises.checks import ASKED, WRITTEN
from qlab.workbook.language.lessons import read_lesson
from qlab.workbook.language.spoken import gettext, say
from qlab.workbook.reader.about import NOTEBOOKS, About, every_lesson

SHOWS = "exercise.solution("  # in a line of a lesson that shows a solution
TEACHER = "teacher.md"


def write_class(folder: Path) -> list[Path]:
    """Write the lessons for a class into the new folder `folder`, in the language that is spoken, and TEACHER beside them.

    Raises:
        UserError: there is something at `folder`, or it cannot be written.
    """
    if os.path.lexists(folder):
        raise UserError(f"{folder} is there already: name a folder that qlab may make")
    lessons = every_lesson()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with Scratch(folder.parent) as unfinished:
            made = unfinished / "class"
            made.mkdir()
            for lesson in lessons:
                (made / f"{lesson.lesson}.ipynb").write_text(without_solutions(lesson), encoding="utf-8")
            (made / TEACHER).write_text(for_the_teacher(lessons), encoding="utf-8")
            shutil.move(made, folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
    return sorted(folder.iterdir())


def without_solutions(lesson: About) -> str:
    """A lesson's notebook, as text, without the lines that show a solution."""
    content = read_lesson(NOTEBOOKS / f"{lesson.lesson}.ipynb")
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.source = "\n".join(line for line in cell.source.splitlines() if SHOWS not in line)
    return f"{nbformat.writes(content)}\n"


def for_the_teacher(lessons: list[About]) -> str:
    """All exercises of all lessons, in Markdown: hints, typical mistakes and the solution of each function; what each question counts."""
    parts = [f"# {gettext('Exercises and their solutions')}"]
    for lesson in lessons:
        parts.append(f"## {lesson.number}. {lesson.title}")
        for name in lesson.exercises:
            parts += written(name) if name in WRITTEN else asked(name)
    return "\n\n".join(parts) + "\n"


def written(name: str) -> Iterator[str]:
    """A function that the class writes."""
    exercise = WRITTEN[name]
    yield f"### `{exercise.solution.__name__}`"
    yield f"```python\n{inspect.getsource(exercise.solution)}```"
    yield f"{gettext('Hints:')}\n\n" + "\n".join(f"{place}. {gettext(text)}" for place, text in enumerate(exercise.hints, 1))
    yield f"{gettext('Mistakes that it knows:')}\n\n" + "\n".join(f"- {gettext(mistake.said)}" for mistake in exercise.mistakes)


def asked(name: str) -> Iterator[str]:
    """A question, whose answer depends on the model at hand."""
    question = ASKED.get(name)
    yield f"### {gettext(name)}"
    if isinstance(question, Asked):
        text = "A number of {unit}, which qlab computes from the model at hand. Hint: {hint}"
        yield say(text, unit=question.unit, hint=question.hint)
    else:
        yield gettext("qlab computes the answer from the model at hand.")
