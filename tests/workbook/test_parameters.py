"""Parameters are checked before anything runs."""

from __future__ import annotations

import pytest

from qlab.support.errors import UserError
from qlab.workbook.parameters import Parameter, parameters_of, resolve
from qlab.workbook.runner import NOTEBOOKS, lesson_names


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


def test_unknown_names_are_refused_and_known_ones_reach_the_lessons_that_have_them() -> None:
    known = {"a": {"x": Parameter("x", 1, "")}, "b": {"y": Parameter("y", 2, "")}}
    assert resolve(known, {"x": "5"}) == {"a": {"x": 5}, "b": {"y": 2}}
    with pytest.raises(UserError, match="parameter 'bitz': expected one of x, y"):
        resolve(known, {"bitz": "4"})
