"""The reader's own copies of the lessons, in `workspace/` or, in another language, in `workspace/fr/`: the repository's notebooks stay as
they are, whatever a reader does.

A copy has links to the lessons beside it and to the glossary. `.lessons.json` keeps what each copy was made from, so that a lesson that
changed replaces a copy that nobody has touched, and leaves one that has been worked on.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

from qlab import ROOT
from qlab.support.disk.whole import write_whole
from qlab.support.reading import read_json
from qlab.workbook.language.lessons import read_lesson
from qlab.workbook.language.spoken import ENGLISH, gettext, spoken
from qlab.workbook.reader.about import NOTEBOOKS, About, every_lesson
from qlab.workbook.reader.glossary import linked, load_glossary

WORKSPACE = ROOT / "workspace"
MADE, ASIDE = ".lessons.json", "set-aside"
CONTENTS, GLOSSARY, OWN_MODEL = "/qlab/", "/qlab/glossary", "/qlab/model"  # pages of `qlab lab`, beside JupyterLab's own


def copies(workspace: Path, language: str) -> Path:
    """The folder of the copies in a language."""
    return workspace if language == ENGLISH else workspace / language


def open_workspace(workspace: Path = WORKSPACE) -> list[str]:
    """See that every lesson has a copy; returns the lessons whose copy is of an earlier version and has been worked on."""
    folder = copies(workspace, spoken())
    folder.mkdir(parents=True, exist_ok=True)
    lessons, made, kept = every_lesson(), read_made(folder), []
    for place, lesson in enumerate(lessons):
        copy, origin = folder / f"{lesson.lesson}.ipynb", copy_of(lessons, place)
        before = made.get(lesson.lesson, {})
        if copy.exists() and before.get("origin") == digest(origin):
            continue
        if copy.exists() and digest(copy.read_text(encoding="utf-8")) != before.get("copy"):
            kept.append(lesson.lesson)
            continue
        write_copy(copy, origin, made)
    return kept


def start_afresh(lessons: Sequence[str], workspace: Path = WORKSPACE) -> list[Path]:
    """Put new copies of `lessons` in the place of the reader's, which are set aside; returns where those are now."""
    folder = copies(workspace, spoken())
    folder.mkdir(parents=True, exist_ok=True)
    every, made, moved = every_lesson(), read_made(folder), []
    for place, lesson in enumerate(every):
        copy = folder / f"{lesson.lesson}.ipynb"
        if lesson.lesson not in lessons:
            continue
        if copy.exists():
            (folder / ASIDE).mkdir(exist_ok=True)
            moved.append(copy.rename(free(folder / ASIDE / f"{lesson.lesson}-{time.strftime('%Y%m%d-%H%M%S')}.ipynb")))
        write_copy(copy, copy_of(every, place), made)
    return moved


def free(file: Path) -> Path:
    """`file`, or with a number behind its name where that is taken."""
    tried, number = file, 1
    while tried.exists():
        number += 1
        tried = file.with_stem(f"{file.stem}-{number}")
    return tried


def write_copy(copy: Path, text: str, made: dict[str, dict[str, str]]) -> None:
    """Write a copy and note what it was made from."""
    write_whole(copy, text)
    made[copy.stem] = {"origin": digest(text), "copy": digest(text)}
    write_whole(copy.parent / MADE, json.dumps(made, indent=1) + "\n")


def read_made(folder: Path) -> dict[str, dict[str, str]]:
    """What each copy in a folder was made from, by lesson."""
    return read_json(folder / MADE) if (folder / MADE).exists() else {}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def copy_of(lessons: Sequence[About], place: int) -> str:
    """A lesson with links to its neighbours above and below, and from the first use of a term to the glossary."""
    import nbformat
    from nbformat.v4 import new_markdown_cell

    content = read_lesson(NOTEBOOKS / f"{lessons[place].lesson}.ipynb")
    terms, used = load_glossary(), set[str]()
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = linked(cell.source, terms, GLOSSARY, used)
    links = neighbours(lessons, place)
    how = gettext(
        "Run a cell with Shift + Enter; it needs the cells above it. *Kernel > Restart* begins anew, *Kernel > Interrupt* stops a cell."
    )
    tags = {"tags": ["navigation"]}
    content.cells.insert(0, new_markdown_cell(f"{links}\n\n{how}", id="navigation-above", metadata=tags))
    content.cells.append(new_markdown_cell(links, id="navigation-below", metadata=tags))
    return nbformat.writes(content) + "\n"


def neighbours(lessons: Sequence[About], place: int) -> str:
    """Links to the lesson before, the contents and the lesson after, as Markdown."""
    links = [f"[{gettext('Contents')}]({CONTENTS})", f"[{gettext('Glossary')}]({GLOSSARY})"]
    if place:
        links.insert(0, f"[← {lessons[place - 1].number}. {lessons[place - 1].title}]({lessons[place - 1].lesson}.ipynb)")
    if place + 1 < len(lessons):
        links.append(f"[{lessons[place + 1].number}. {lessons[place + 1].title} →]({lessons[place + 1].lesson}.ipynb)")
    return " · ".join(links)
