"""Lesson 1's exercise: readers' ways to round a group, and what each is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qlab.workbook.exercises.rounding import WRITTEN, relative_error
from qlab.workbook.exercises.trial import Unwritten, fault_of


def by_numpy(weights: Any, bits: int) -> Any:
    w = np.asarray(weights)
    low, high = min(w.min(), 0), max(w.max(), 0)
    if low == high:
        return w
    s = (high - low) / (2**bits - 1)
    z = np.round(-low / s)
    return (np.clip(np.round(w / s) + z, 0, 2**bits - 1) - z) * s


def by_lists(weights: Any, bits: int) -> list[float]:
    w = weights.tolist()
    low, high = min(*w, 0), max(*w, 0)
    s = (high - low) / (2**bits - 1) or 1
    z = round(-low / s)
    return [(min(max(round(x / s) + z, 0), 2**bits - 1) - z) * s for x in w]


@pytest.mark.parametrize("right", [by_numpy, by_lists])
def test_a_right_one_passes_in_numpy_and_in_plain_numbers(right: Any) -> None:
    assert fault_of(WRITTEN, right) is None


def symmetric(weights: Any, bits: int) -> Any:
    s = weights.abs().max() / (2 ** (bits - 1) - 0.5)
    middle = 2 ** (bits - 1)
    return ((weights / s).round() + middle).clamp(0, 2**bits - 1).sub(middle) * s if s else weights


def without_zero_point(weights: Any, bits: int) -> Any:
    s = (weights.max() - weights.min().clamp(max=0)) / (2**bits - 1)
    return (weights / s).round().clamp(0, 2**bits - 1) * s if s else weights


def codes(weights: Any, bits: int) -> Any:
    low, high = weights.min().clamp(max=0), weights.max().clamp(min=0)
    s = (high - low) / (2**bits - 1)
    return (weights / s).round() + (-low / s).round() if s else weights


def divides_by_zero(weights: Any, bits: int) -> Any:
    low, high = weights.min().clamp(max=0), weights.max().clamp(min=0)
    s = (high - low) / (2**bits - 1)
    z = (-low / s).round()
    return (((weights / s).round() + z).clamp(0, 2**bits - 1) - z) * s


def a_step_too_many(weights: Any, bits: int) -> Any:
    low, high = weights.min().clamp(max=0), weights.max().clamp(min=0)
    s = (high - low) / 2**bits
    z = (-low / s).round()
    return (((weights / s).round() + z).clamp(0, 2**bits - 1) - z) * s if s else weights


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (symmetric, "symmetric grid"),
        (without_zero_point, "The zero point is missing"),
        (codes, "These are the codes"),
        (divides_by_zero, "divided by zero"),
        (a_step_too_many, "2ᵇ − 1 steps"),
        (lambda weights, bits: weights, "nothing is rounded"),
        (lambda weights, bits: weights[:3], "shape [3] instead of [6]"),
        (lambda weights, bits: "weights", "returns a str"),
        (lambda weights, bits: weights + 1, "more than half a step (0.125) away"),
        (lambda weights, bits: by_numpy(weights, bits + 1), "more than half|different values|The result is wrong"),
        (lambda weights, bits: torch.full_like(weights, 0.1), "comes back as 0.1"),
    ],
)
def test_a_wrong_one_is_told_what_is_wrong(wrong: Any, said: str) -> None:
    fault = fault_of(WRITTEN, wrong)
    assert fault is not None
    assert any(words in fault.said for words in said.split("|"))
    assert "weights" in fault.case


@pytest.mark.parametrize("empty", [None, ..., lambda weights, bits: None, lambda weights, bits: ...])
def test_an_empty_one_is_not_wrong(empty: Any) -> None:
    with pytest.raises(Unwritten):
        fault_of(WRITTEN, empty)


def test_the_first_case_that_fails_is_small_enough_to_read() -> None:
    fault = fault_of(WRITTEN, symmetric)
    assert fault is not None
    assert torch.equal(fault.case["weights"], WRITTEN.cases()[0]["weights"])
    assert len(fault.case["weights"]) == 6
    assert list(fault.case) == ["weights", "bits", "your result", "expected"]


def test_the_answer_on_a_model_is_what_a_right_function_finds() -> None:
    weight = torch.randn(80, 64, generator=torch.Generator().manual_seed(0))
    back = torch.stack([torch.as_tensor(by_numpy(group, 3)) for group in weight[:64].reshape(-1, 32)]).view(64, 64)
    error = 100 * float((back - weight[:64]).square().sum() / weight[:64].square().sum())
    assert relative_error(weight, 32) == pytest.approx(error, rel=5e-3)
