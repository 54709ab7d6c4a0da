"""Answers that are numbers or names: what is wrong with one is said in words."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from qlab.workbook.exercises import answer, saying


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(saying, "display", lambda html: found.append(html.data))
    return found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "Not answered yet"),
        (..., "Not answered yet"),
        (2.01, "Right."),
        (np.float32(2), "Right."),
        (torch.tensor(2.0), "Right."),
        (torch.tensor([2.0], requires_grad=True), "Right."),
        (np.array([2.0]), "Right."),
        (Fraction(4, 2), "Right."),
        (3, "3 GB is too large. Halve it."),
        (1, "too small"),
        ("<b>", "&lt;b&gt;"),
        ("2", "is none"),
        (float("nan"), "should be a number of GB; nan is none"),
        (True, "True is none"),
        (np.True_, "is none"),
        (np.array([2.0, 2.0]), "is none"),
        ({"content": "x" * 1000}, "is none"),
    ],
)
def test_what_is_said_of_a_number(given: object, said: str, shown: list[str]) -> None:
    answer.check("GB", given, 2.0, "Halve it.")
    (found,) = shown
    assert said in found
    assert len(found) < 400


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "Not answered yet"),
        (["A"], "Right."),
        ({"A"}, "Right."),
        ("A", "should be a list of names"),
        ([1], "should be a list of names"),
        (3, "should be a list of names"),
        (["B"], "B &lt; A"),
    ],
)
def test_what_is_said_of_names(given: object, said: str, shown: list[str]) -> None:
    answer.check_names("names", given, lambda names: "" if names == ["A"] else f"{names[0]} < A")
    assert said in shown[0]
