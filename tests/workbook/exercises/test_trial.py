"""A reader's function is tried on copies, stopped when it takes too long, and its errors are told with their line."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from qlab.workbook.exercises import trial
from qlab.workbook.exercises.trial import Mistake, Numbers, Unwritten, Written, as_tensor, fault_of

SQUARE = Written(
    solution=lambda x: x * x,
    expected=lambda x: x * x,
    cases=lambda: [{"x": torch.tensor([1.0, 2.0, 3.0])}, {"x": torch.tensor([5.0, 0.0, 1.0])}],
    form=Numbers("three numbers"),
    mistakes=(Mistake(lambda x: 2 * x, "doubled"), Mistake(lambda x: x, "unchanged")),
    hints=("Multiply.",),
)


def said_of(function: Any) -> str:
    fault = fault_of(SQUARE, function)
    return fault.said if fault else ""


def test_copies_are_given() -> None:
    def changes(x: Any) -> Any:
        return x.mul_(x)

    assert said_of(changes) == ""
    assert said_of(changes) == ""


def test_an_error_is_told_with_its_line() -> None:
    def stops(x: Any) -> Any:
        y = x + 1
        return y[7] * 2  # the line

    assert "IndexError" in said_of(stops)
    assert said_of(stops).endswith("at the line: return y[7] * 2  # the line")


def test_other_arguments_are_told() -> None:
    assert "could not be called" in said_of(lambda: 3)
    assert "without brackets" in said_of(torch.tensor([1.0]))
    assert "a list of length 2" in said_of([1, 2])


def test_an_endless_loop_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "LONGEST", 0.2)

    def endless(x: Any) -> Any:
        while True:
            x = x + 1

    started = time.monotonic()
    assert "does a loop never end" in said_of(endless)
    assert time.monotonic() - started < 5


def test_a_mistake_must_fit_every_case() -> None:
    assert said_of(lambda x: 2 * x) == "doubled"
    assert said_of(lambda x: x if x[0] == 1 else 2 * x) == "The result differs from what was expected."


def test_what_is_wrong_before_is_told_before_what_cannot_be_read_later() -> None:
    assert said_of(lambda x: 2 * x if x[0] == 1 else x / 0) == "doubled"
    assert "NaN" in said_of(lambda x: x * x if x[0] == 1 else x / 0)
    assert "returns nothing" in said_of(lambda x: x * x if x[0] == 1 else None)


def test_nothing_and_gaps_are_unwritten() -> None:
    def gap(x: Any) -> Any:
        raise NotImplementedError

    for empty in (gap, None, ..., lambda x: None, lambda x: ...):
        with pytest.raises(Unwritten):
            fault_of(SQUARE, empty)


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(2, dtype=torch.float16),
        np.ones(2),
        [1, 1.0],
        [torch.tensor(1), np.float32(1)],
        (True, 1),
        torch.ones(2, requires_grad=True),
    ],
)
def test_numbers_of_every_kind_are_read(value: Any) -> None:
    found = as_tensor(value)
    assert found is not None
    assert found.dtype == torch.float64
    assert found.tolist() == [1, 1]


@pytest.mark.parametrize("value", ["11", "x", object(), {"a": 1}, [], [[1], [1, 2]], torch.empty(0), np.zeros(1 << 21)])
def test_what_is_no_number_or_far_too_many_is_not(value: Any) -> None:
    assert as_tensor(value) is None
