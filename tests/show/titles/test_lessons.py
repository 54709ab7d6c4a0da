"""No figure of a lesson has a title that stands before anything is measured."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator

import pytest

from qlab.show import figures
from qlab.workbook.reader.about import lesson_names
from tests.workbook.language.test_english import cells


def fixed_titles(cell: ast.Module) -> Iterator[str]:
    """Calls of `figures` whose title is a text, or a text with values in it."""
    for call in (node for node in ast.walk(cell) if isinstance(node, ast.Call)):
        if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "figures":
            place = list(inspect.signature(getattr(figures, call.func.attr)).parameters).index("title")
            given = {word.arg: word.value for word in call.keywords}.get("title") or call.args[place]
            if isinstance(given, (ast.Constant, ast.JoinedStr)):
                yield ast.unparse(call)


@pytest.mark.parametrize("lesson", lesson_names())
def test_every_title_is_computed(lesson: str) -> None:
    found = [f"{place}: {call}" for place, cell in cells() if place.startswith(lesson) for call in fixed_titles(cell)]
    assert not found, "state the finding in a function of qlab/show/titles:\n" + "\n".join(found)


def test_a_fixed_title_is_found() -> None:
    assert list(fixed_titles(ast.parse('figures.lines(rates, "Throughput against load", "x", "y")')))
    assert list(fixed_titles(ast.parse('figures.heatmap(chosen, label="bits", title=f"Bits of {name}")')))
    assert not list(fixed_titles(ast.parse('figures.heatmap(chosen, titles.widths(chosen), "bits")')))
