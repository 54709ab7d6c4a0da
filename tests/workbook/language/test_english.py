"""No sentence is put together in English where a lesson shows it: neither in cells, nor in what they call."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from qlab import ROOT
from qlab.workbook.reader.about import NOTEBOOKS, lesson_names
from tests.workbook.language.english import english_in

ROOMS = ("show", "workbook", "claims")
# What is English for every reader, and why.
ENGLISH = {
    "qlab/show/site/sweep_page.py": "a sweep's page has one language",
    "qlab/show/site/sweep_report.py": "likewise",
    "qlab/workbook/language/lessons.py": "it tells whoever translates what is to be done",
    "qlab/serve/files.py": "files that a deployment reads",
}
# Likewise what lessons call in rooms below: errors that are raised, a header of HTTP, notes of artifacts, and what a bar of progress says.
BELOW = {"find_device", "post", "inverse_factor", "train", "run_load"}
# What the workbook says that is worded below it.
WORDED = {
    "qlab/recipes/fitting.py": {"unquantized", "fitted_size", "summary"}, "qlab/formats/awq.py": {"unfit"},
    "qlab/models/opening.py": {"already_rounded"}, "qlab/support/wording.py": {"first_and_number", "listed"},
}  # fmt: skip


def cells() -> Iterator[tuple[str, ast.Module]]:
    """Each code cell of the lessons, with its place."""
    for lesson in lesson_names():
        for cell in nbformat.read(NOTEBOOKS / f"{lesson}.ipynb", as_version=4).cells:
            if cell.cell_type == "code":
                yield f"{lesson}, cell {cell.id}", ast.parse(cell.source)


def called_by_lessons() -> dict[Path, set[str]]:
    """What cells import from rooms below the workbook, and WORDED: names by file."""
    found = {ROOT / file: set(names) for file, names in WORDED.items()}
    for node in (node for _, cell in cells() for node in ast.walk(cell) if isinstance(node, ast.ImportFrom)):
        file = ROOT / f"{(node.module or '').replace('.', '/')}.py"
        if file.is_file() and file.relative_to(ROOT).parts[1] not in ROOMS and str(file.relative_to(ROOT)) not in ENGLISH:
            found.setdefault(file, set()).update(alias.name for alias in node.names)
    return found


def test_cells_say_nothing_that_stays_english() -> None:
    found = [f"{place}: {said}" for place, cell in cells() for said in english_in(cell)]
    assert not found, "say these through qlab.workbook.language.spoken.say:\n" + "\n".join(found)


@pytest.mark.parametrize("room", ROOMS)
def test_the_rooms_of_lessons_put_no_english_together(room: str) -> None:
    files = [file for file in sorted((ROOT / "qlab" / room).rglob("*.py")) if str(file.relative_to(ROOT)) not in ENGLISH]
    found = []
    for file in files:
        found += [f"{file.relative_to(ROOT)}: {said}" for said in english_in(ast.parse(file.read_text(encoding="utf-8")))]
    assert not found, "say these through say, or make them a Sentence:\n" + "\n".join(found)


def test_what_lessons_call_in_rooms_below_returns_sentences() -> None:
    found = []
    for file, wanted in called_by_lessons().items():
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in wanted - BELOW:
                found += [f"{file.relative_to(ROOT)}, {node.name}: {said}" for said in english_in(node, drawn=False)]
    assert not found, "make these a qlab.support.wording.Sentence:\n" + "\n".join(found)


def test_the_functions_that_lessons_call_are_found() -> None:
    assert "crossings" in called_by_lessons()[ROOT / "qlab" / "serve" / "crowd.py"]


@pytest.mark.parametrize(
    "text",
    [
        'figures.bars(values, f"{name} is best", "GB")',
        'figures.lines({f"{bits} of them": points}, title, "x", "y")',
        'axes.set_xlabel(f"share of {name}")',
        'axes.plot(x, y, label=f"damping {damping:g}")',
        'axes.set_ylabel("output error")',
        'caption(axes, "a line an order")',
        'print(f"{size:.1f} GB")',
        'print("All is well.")',
        'print(name + " gives most tokens")',
        'print("%s gives most" % name)',
        'print("{name} gives most".format(name=name))',
        'gettext("{size} of this").format(size=size)',
        'text = gettext("{size} of this")\nprint(text.format(size=size))',
        'def lines(self):\n    return [f"{name}: {bits} bits a weight" for name in names]',
    ],
)
def test_english_that_cannot_be_translated_is_found(text: str) -> None:
    assert list(english_in(ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        'print(say("{name} is best", name=name))',
        'figures.bars(values, say("{name} is best", name=name), gettext("output error"))',
        'record(f"quality of {name}", value)',
        'raise UserError(f"no lesson {name}")',
        'assert holds, f"no lesson {name}"',
        "page = f'<p class=\"a b\">{said} and more</p>'",
        'parse(f"gptq-w4g{group}-sequential")',
        'f"{gettext(name)}: {value:.2f} ± {error:.2f} %"',
        'f".venv/bin/qlab run --model {model}"',
        'axes.plot(x, y, label="H")',
    ],
)
def test_what_is_said_through_say_or_is_no_sentence_passes(text: str) -> None:
    assert list(english_in(ast.parse(text))) == []
