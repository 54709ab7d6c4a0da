"""Reading messages from a program's text: a new one is found wherever it stands, and one that cannot be read is an error."""

from __future__ import annotations

import ast

import pytest

from tests.workbook.language.templates import keys_in, said_in

CELL = """
question = "How many {things}?"
for name in names:
    print(say("{name}: new", name=name))
predict(Sentence(question, things=3))
"""
FUNCTION = """
OUTSIDE = "of the module {x}"


def said(found):
    one, other = "first {x}", "second {x}"
    template = one if found else "third {x}"

    def inner():
        return Sentence(OUTSIDE if found else other, x=1)

    return Sentence(template, x=1) if found else plural(found, "1 thing", "{count} things")
"""


def test_messages_are_found_in_loops_in_names_and_in_functions() -> None:
    assert sorted(said_in(ast.parse(CELL))) == ["How many {things}?", "{name}: new"]
    assert sorted(said_in(ast.parse(FUNCTION))) == ["1 thing", "of the module {x}", "second {x}", "third {x}", "{count} things"]


@pytest.mark.parametrize("text", ["say(f'{a} b', a=1)", "say(told, a=1)", "def f():\n    return Sentence('a ' + b, a=1)"])
def test_a_template_that_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(AssertionError, match="no test can read the template"):
        list(said_in(ast.parse(text)))
    assert list(said_in(ast.parse("say(note); gettext(label)"))) == []


def test_columns_are_keys_of_rows() -> None:
    text = "rows = [{'use': a, 'take': b} for a, b in c]; rows.append({'why': 1}); values = {'own': 1}; record('x', {'y': 2})"
    assert sorted(keys_in(ast.parse(text))) == ["take", "use", "why"]
