"""All messages that qlab says through gettext: those in its code and pages, and those that it keeps as data."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import nbformat
import torch
from jinja2.ext import babel_extract

from qlab import ROOT
from qlab.claims import ADVICE, FAILS, HOLDS, NOISE, OPEN, TESTS, UNTESTABLE, judge, load_claims
from qlab.evaluate.agreement import CONTROL
from qlab.evaluate.arithmetic import FLOOR
from qlab.models.texts.windows import KINDS
from qlab.plan import choose
from qlab.serve.proof import Check
from qlab.show import figures
from qlab.show.methods.bits import PARTS
from qlab.show.methods.superblock import COLOURS
from qlab.show.tables import error_table
from qlab.show.titles.principles import INT8, STORED
from qlab.show.widgets import label
from qlab.workbook.batch.runner import DONE, FAILED, LEFT_OUT, SKIPPED
from qlab.workbook.benchmark import NO_PEAK, NOTES, best_of, results_table, subjects
from qlab.workbook.blocks import plain_name, shown_blocks
from qlab.workbook.comparison import METHODS
from qlab.workbook.comparison import PARTS as PARTS_OF_METHODS
from qlab.workbook.crowd.advice import Choice
from qlab.workbook.drawn.bits import chosen_weights
from qlab.workbook.drawn.nested import nested_bytes
from qlab.workbook.drawn.parts import PLACE, SURE
from qlab.workbook.drawn.spending import ALIKE, CHOSEN, RANDOM
from qlab.workbook.exercises.answer import Asked
from qlab.workbook.exercises.checks import ASKED, WRITTEN
from qlab.workbook.exercises.trial import Names, Numbers
from qlab.workbook.language.lessons import remarks
from qlab.workbook.reader.about import NOTEBOOKS, lesson_names
from qlab.workbook.reader.glossary import load_glossary
from qlab.workbook.recommend import USES, Advice
from tests.workbook.language.templates import FUNCTIONS, calls, keys_in, named, said_in

UNREAD = ("wording.py", "spoken.py")  # where templates are handed on
TABLES = {  # functions that name columns
    "comparison.py": ("ranking", "parts_table"),
    "benchmark.py": ("prerequisites",),
    "recommend.py": ("every_advice",),
    "advice.py": ("every_choice",),
    "pace.py": ("facts",),
}


def every_message() -> dict[str, str]:
    """{message: where it is said}; the first of two forms stands for both."""
    found: dict[str, str] = {}
    for where, message in [*of_code(), *of_pages(), *of_data(), *of_lessons()]:
        found.setdefault(message, where)
    return found


def of_code() -> Iterator[tuple[str, str]]:
    for file in sorted((ROOT / "qlab").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        yield from ((str(file.relative_to(ROOT)), message) for message in said_in(tree, file.name in UNREAD))
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in TABLES.get(file.name, ())):
            yield from ((str(file.relative_to(ROOT)), column) for column in keys_in(function))


def of_pages() -> Iterator[tuple[str, str]]:
    for file in sorted((ROOT / "qlab").rglob("*.jinja")):
        with file.open("rb") as text:
            for _, _, message, _ in babel_extract(text, list(FUNCTIONS), [], {"trimmed": "true", "newstyle_gettext": "true"}):
                yield str(file.relative_to(ROOT)), str(message[0] if isinstance(message, tuple) else message)


def of_data() -> Iterator[tuple[str, str]]:
    yield from (("data/glossary.yaml", term.meaning) for term in load_glossary())
    for claim in load_claims():
        yield from (("data/claims.yaml", claim[part]) for part in ("statement", "figure", "outdated") if claim[part])
    yield from (("qlab/claims", test.rule) for test in TESTS.values())
    untested = [found for found in judge({}) if found.claim["id"] not in TESTS and found.claim["test"] in ("advice", "machine")]
    yield from (("qlab/claims", found.measured) for found in untested)
    yield from (("qlab/claims", verdict) for verdict in (HOLDS, FAILS, NOISE, UNTESTABLE, OPEN, ADVICE))
    yield from (("qlab/workbook/batch/runner.py", state) for state in (DONE, FAILED, SKIPPED, LEFT_OUT))
    yield from (("qlab/claims", test.decide({})[1]) for test in TESTS.values() if test.rule == "by the runtime's own documentation")
    yield from (("qlab/models/texts/windows.py", kind) for kind in KINDS)
    yield from (("qlab/plan/choose.py", said) for path, leaf in choose.leaves().items() for said in (*path, leaf) if " " in said)
    columns = [field.name for table in (Check, Advice, Choice) for field in fields(table)]
    yield from (
        ("qlab/serve, qlab/workbook", column)
        for column in (*columns, *METHODS, CONTROL, *INT8, STORED, PLACE, SURE, "device", "count", "tokens/s ceiling")
    )
    yield from (("qlab/workbook/comparison.py", part) for part in PARTS_OF_METHODS)
    yield from (("qlab/workbook/benchmark.py", said) for said in (*NOTES, NO_PEAK, FLOOR, *best_of([]), *USES))
    yield from (("qlab/workbook/benchmark.py", column) for column in results_table([], {})["columns"])
    yield from (("qlab/workbook/benchmark.py", name) for name in subjects(128) if " by " in name)
    table = error_table({"model.layers.0.mlp.up_proj": 0.1})
    yield from (("qlab/show/tables.py", str(axis)) for axis in (table.index.name, table.columns.name))
    for width in (256, 96):  # rows that superblocks divide, and rows that they do not
        shown = shown_blocks({"a": torch.nn.Linear(width, 1)})
        yield from (
            ("qlab/workbook/blocks.py", said) for label in (shown.label, shown.control_label) for said in (label, plain_name(label))
        )
    yield from (("qlab/show/methods", name) for name in (*PARTS, *COLOURS))
    yield from (("qlab/workbook/drawn/bits.py", name) for name in chosen_weights(torch.arange(1, 9), 8))
    yield from (("qlab/workbook/drawn/spending.py", name) for name in (CHOSEN, ALIKE, RANDOM))
    yield from (("qlab/workbook/drawn/nested.py", name) for name in nested_bytes(torch.ones(1, 64)).double if " " in name)
    for name, written in WRITTEN.items():
        assert isinstance(written.form, (Numbers, Names))
        said = [written.form.what, *written.hints, *(mistake.said for mistake in written.mistakes)]
        yield from ((f"exercise {name}", message) for message in said)
    for name, asked in ASKED.items():
        if isinstance(asked, Asked):
            yield from ((f"exercise {name!r}", message) for message in (asked.unit, asked.hint))


def of_lessons() -> Iterator[tuple[str, str]]:
    """Questions and choices of predictions, names and choices of controls, axes of figures, what is printed, columns, and comments."""
    for lesson in lesson_names():
        for cell in nbformat.read(NOTEBOOKS / f"{lesson}.ipynb", as_version=4).cells:
            if cell.cell_type == "code":
                yield from ((f"lesson {lesson}", message) for message in of_cell(ast.parse(cell.source)))
                yield from ((f"lesson {lesson}, a comment", text) for _, _, text in remarks(cell.source))


def of_cell(cell: ast.Module) -> Iterator[str]:
    yield from said_in(cell)
    if any(named(call) == "table_of" for call in calls(cell)):
        yield from keys_in(cell)
    for node in cell.body:  # question = "…", for the line below it
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "question":
            yield from texts(node.value)
    for call in calls(cell):
        if named(call) == "predict":
            for argument in call.args:
                yield from texts(argument)
        elif named(call) == "explore":
            for keyword in call.keywords:
                yield label(str(keyword.arg))
                yield from texts(keyword.value)
        elif isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "figures":
            parameters = inspect.signature(getattr(figures, call.func.attr)).parameters
            tidy = next(iter(parameters)) == "table"  # whose x and y are columns
            for parameter, argument in zip(parameters, call.args):
                if parameter in ("title", "label") or (parameter in ("x", "y") and not tidy):
                    yield from texts(argument)


def texts(node: ast.expr) -> Iterator[str]:
    """A text, or those of a list, but for numbers and names such as int3, which are the same in every language."""
    for part in node.elts if isinstance(node, ast.List) else [node]:
        if isinstance(part, ast.Constant) and isinstance(part.value, str) and (" " in part.value or not re.search(r"\d", part.value)):
            yield part.value


def names_in_lessons() -> set[str]:
    """Texts in the lessons' code: some name what a figure shows, and may be translated."""
    cells = [cell for lesson in lesson_names() for cell in nbformat.read(NOTEBOOKS / f"{lesson}.ipynb", as_version=4).cells]
    nodes = [node for cell in cells if cell.cell_type == "code" for node in ast.walk(ast.parse(cell.source))]
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def catalogue(language: str) -> Path:
    return NOTEBOOKS / language / "messages.po"
