"""What a lesson is about, read from its notebook: title, aim, time, what it needs, its exercises."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qlab import ROOT
from qlab.workbook.language.lessons import read_lesson
from qlab.workbook.language.spoken import gettext

if TYPE_CHECKING:
    from nbformat import NotebookNode

NOTEBOOKS = ROOT / "notebooks"
CHECKS = ("check", "check_answer", "check_written")  # functions of exercises/ that judge; the first argument names the exercise


@dataclass(frozen=True)
class About:
    """`number` and `title` from the notebook's heading, `aim`, `time` and `need` from the lines below it, as Markdown.

    `exercises` are the names by which progress is kept, in the lesson's order.
    """

    lesson: str
    number: str
    title: str
    aim: str
    time: str
    need: str
    exercises: tuple[str, ...]


def lesson_names() -> list[str]:
    """All lessons, in order."""
    return sorted(path.stem for path in NOTEBOOKS.glob("0*.ipynb"))


def about(notebook: Path) -> About:
    """What the lesson in a notebook file is about, in the language that is spoken; a part that its first cell does not say is empty."""
    content = read_lesson(notebook)
    opening = "\n\n".join(cell.source for cell in content.cells[:2] if cell.cell_type == "markdown")
    heading = re.search(r"^# (?:(\d+)\. )?(.+)$", opening, re.M)
    number, title = heading.groups() if heading else (None, notebook.stem)
    aim = said(gettext("What this lesson proves:"), opening)
    time, need = said(gettext("Time:"), opening), said(gettext("You need:"), opening)
    return About(notebook.stem, number or "", title, aim, time, need, tuple(exercises_of(content)))


def every_lesson() -> list[About]:
    """All lessons, in order."""
    return [about(NOTEBOOKS / f"{lesson}.ipynb") for lesson in lesson_names()]


def said(mark: str, text: str) -> str:
    """What stands behind a mark such as `*Time:*`, to the next mark or the end of the paragraph."""
    found = re.search(rf"\*{re.escape(mark)}\*{{1,2}}\s*(.+?)(?=\s*\*{{1,2}}[A-ZÀ-Ý][^*]*:\*|\n\n|\Z)", text, re.S)
    text = " ".join(found[1].split()) if found else ""
    return text[:1].upper() + text[1:]


def exercises_of(content: NotebookNode) -> list[str]:
    """The names of a lesson's exercises: the first argument of each call of a check, where it is a text."""
    found: dict[str, None] = {}
    for cell in content.cells:
        if cell.cell_type == "code":
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Call) and called(node) in CHECKS and node.args:
                    name = node.args[0]
                    if isinstance(name, ast.Constant) and isinstance(name.value, str):
                        found[name.value] = None
    return list(found)


def called(call: ast.Call) -> str:
    """The name of the function that is called, without the module before it."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id if isinstance(call.func, ast.Name) else ""
