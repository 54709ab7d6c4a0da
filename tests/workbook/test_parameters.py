"""Parameters are checked before anything runs."""

from __future__ import annotations

import math
import re
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.models.opening import OpenedModel
from qlab.support.errors import UserError
from qlab.workbook import parameters
from qlab.workbook.language.spoken import VARIABLE
from qlab.workbook.parameters import Parameter, parameters_of, resolve
from qlab.workbook.reader.about import NOTEBOOKS, lesson_names

TOLD = re.compile(r"0: (\d+), or (\d+) for a model of more than 100 million weights")


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


def test_a_large_model_gets_less_where_nobody_asked(
    tiny: OpenedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "en")
    assert [parameters.by_size("tuning_steps", given, tiny) for given in (0, 7)] == [40, 7]
    assert not capsys.readouterr().out
    monkeypatch.setattr(parameters, "LARGE", 1e3)
    assert [parameters.by_size("tuning_steps", given, tiny) for given in (0, 70)] == [20, 70]
    assert capsys.readouterr().out.count("tuning_steps is 20") == 1


def test_the_parameters_cells_tell_what_a_model_gets() -> None:
    told = {}
    for lesson in lesson_names():
        for name, parameter in parameters_of(NOTEBOOKS / f"{lesson}.ipynb").items():
            if found := TOLD.search(parameter.help):
                assert parameter.default == 0
                told[name] = tuple(map(int, found.groups()))
    assert told == parameters.USUAL
    assert parameters.LARGE == 100e6


def test_nothing_is_a_value_only_where_it_is_the_default() -> None:
    assert Parameter("x", 0, "").parse("0") == 0
    with pytest.raises(UserError, match="from 1 to"):
        Parameter("x", 4, "").parse("0")
    with pytest.raises(UserError, match="from 0 to"):
        Parameter("x", 0, "").parse("-1")
