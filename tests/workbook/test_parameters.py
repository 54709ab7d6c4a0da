"""Parameters are checked before anything runs."""

from __future__ import annotations

import math
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.support.errors import UserError
from qlab.workbook.parameters import Parameter, parameters_of, resolve
from qlab.workbook.reader.about import NOTEBOOKS, lesson_names


def test_every_lesson_has_explained_literals() -> None:
    for lesson in lesson_names():
        parameters = parameters_of(NOTEBOOKS / f"{lesson}.ipynb")
        assert parameters["model"].default == "embedded"
        assert all(parameter.help for parameter in parameters.values()), lesson


@pytest.mark.parametrize(
    ("default", "text", "value"), [(4, "8", 8), (0.5, "1", 1.0), (0.5, "0.25", 0.25), ("a", "7", "7"), (True, "False", False)]
)
def test_values_take_the_defaults_type(default: object, text: str, value: object) -> None:
    parsed = Parameter("x", default, "").parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(("default", "text"), [(4, "four"), (4, "4.5"), (4, "True"), (True, "1"), (0.5, "half"), (4, "__import__('os')")])
def test_values_of_another_type_are_refused(default: object, text: str) -> None:
    with pytest.raises(UserError, match=r"parameter x is .*: expected"):
        Parameter("x", default, "").parse(text)


ABSURD = [
    "9" * 5000,
    "10000001",
    "0",
    "-1",
    "1e999",
    "[" * 5000,
    "-" * 20_000 + "1",
    "(" * 20_000,
    "{[]: 1}",
    "1\0",
    "",
    "x" * 5000,
    "é" * 300,
]


@pytest.mark.parametrize("default", [4, 0.5, True])
@pytest.mark.parametrize("text", ABSURD)
def test_absurd_values_are_one_short_message(default: object, text: str) -> None:
    if (type(default), text) in {(float, "10000001"), (float, "0"), (float, "-1")}:
        return  # numbers like others
    with pytest.raises(UserError, match=r"parameter x is .*: expected") as refused:
        Parameter("x", default, "").parse(text)
    assert len(str(refused.value)) < 200


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30) | st.text("[]{}()-1e,:'\"", max_size=30) | st.floats().map(str) | st.integers().map(str))
def test_any_text_is_a_value_of_the_defaults_type_or_refused(text: str) -> None:
    for default in (4, 0.5, True):
        with suppress(UserError):
            value = Parameter("x", default, "").parse(text)
            assert type(value) is type(default)
            assert math.isfinite(value)


def test_unknown_names_are_refused_and_known_ones_reach_the_lessons_that_have_them() -> None:
    known = {"a": {"x": Parameter("x", 1, "")}, "b": {"y": Parameter("y", 2, "")}}
    assert resolve(known, {"x": "5"}) == {"a": {"x": 5}, "b": {"y": 2}}
    with pytest.raises(UserError, match="parameter 'bitz': expected one of x, y"):
        resolve(known, {"bitz": "4"})
