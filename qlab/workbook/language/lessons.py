"""A lesson in the language that is spoken: its notebook with other text in its Markdown cells and in the comments of its code, which with
its figures exists once.

`notebooks/fr/01_principles.md` has the French of `notebooks/01_principles.ipynb`: a section for each Markdown cell, after a comment with
the cell's id and a hash of the English text that the section translates. So a text that has changed since is known. What code is commented
with is a message, in the catalogue beside (spoken.py).
"""

from __future__ import annotations

import hashlib
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qlab.workbook.language.spoken import ENGLISH, gettext, spoken

if TYPE_CHECKING:  # its schemas take some four seconds to import, which each lesson that reads no notebook would pay
    from nbformat import NotebookNode

BEGINNING = re.compile(r"^<!-- ([\w-]+) ([0-9a-f]{12}) -->\n", re.M)


@dataclass(frozen=True)
class Section:
    """A cell's text in another language; `origin` is the hash of the English text."""

    cell: str
    origin: str
    text: str


def read_lesson(notebook: Path) -> NotebookNode:
    """A lesson in the language that is spoken. A cell whose translation is missing, or is of an earlier text, stays English."""
    content = read_notebook(notebook)
    if spoken() == ENGLISH:
        return content
    sections = {section.cell: section for section in sections_of(notebook, spoken())}
    for cell in markdown_cells(content):
        section = sections.get(cell.id)
        if section and section.origin == hash_of(cell.source):
            cell.source = section.text
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.source = commented(cell.source)
    return content


def commented(code: str) -> str:
    """Code with its remarks in the language that is spoken; the program stays."""
    lines = code.splitlines(keepends=True)
    try:
        found = list(remarks(code))
    except (tokenize.TokenError, SyntaxError):  # a cell that a reader has changed, such as a command for a shell
        return code
    for line, place, text in reversed(found):
        before, after = lines[line][:place], lines[line][place + len(text) :]
        lines[line] = f"{before}{gettext(text)}{after}"
    return "".join(lines)


def remarks(code: str) -> Iterator[tuple[int, int, str]]:
    """The comments and docstrings of code, of one line each: its number from 0, the place in it, the text. Where code is commented out, the
    comment is what stands behind it."""
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        (line, place), text = token.start, ""
        if token.type == tokenize.COMMENT:
            text = token.string.rpartition("  # ")[2].removeprefix("# ")
        elif token.type == tokenize.STRING and token.string.startswith('"""'):
            text = token.string.strip('"')
        if text and "\n" not in text:
            yield line - 1, place + token.string.rindex(text), text


def read_notebook(notebook: Path) -> NotebookNode:
    """A notebook file as it is."""
    import nbformat

    return nbformat.read(notebook, as_version=4)


def faults(notebook: Path, language: str) -> list[str]:
    """What is wrong with the translation of a lesson, a sentence for each cell: it is missing, of an earlier text, or of no cell."""
    cells = {cell.id: hash_of(cell.source) for cell in markdown_cells(read_notebook(notebook))}
    sections = {section.cell: section for section in sections_of(notebook, language)}
    file = f"notebooks/{language}/{translation_of(notebook, language).name}"
    found = []
    for cell, origin in cells.items():
        write = f"write its translation in {file}, after the line <!-- {cell} {origin} -->"
        if cell not in sections:
            found.append(f"lesson {notebook.stem}, cell {cell}: there is no translation; {write}")
        elif sections[cell].origin != origin:
            found.append(f"lesson {notebook.stem}, cell {cell}: the English text has changed since it was translated; {write}")
    gone = [cell for cell in sections if cell not in cells]
    return [*found, *(f"lesson {notebook.stem} has no cell {cell}: delete its section in {file}" for cell in gone)]


def sections_of(notebook: Path, language: str) -> list[Section]:
    """The sections of a lesson's translation; none where there is no file."""
    file = translation_of(notebook, language)
    if not file.exists():
        return []
    _, *parts = BEGINNING.split(file.read_text(encoding="utf-8"))
    return [Section(cell, origin, text.strip("\n")) for cell, origin, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True)]


def translation_of(notebook: Path, language: str) -> Path:
    """The file of a lesson's translation."""
    return notebook.parent / language / f"{notebook.stem}.md"


def markdown_cells(content: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in content.cells if cell.cell_type == "markdown"]


def hash_of(text: str) -> str:
    """Twelve digits that change with the text, but for empty lines at its ends."""
    return hashlib.sha256(text.strip("\n").encode()).hexdigest()[:12]
