"""Lesson 2's exercise: readers' ways to search the exponent, and what each is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qlab.methods.awq import channel_scale, output_error, sweep_exponents
from qlab.methods.rtn import rtn
from qlab.workbook.exercises.awq import WRITTEN
from qlab.workbook.exercises.trial import Unwritten, fault_of


def search(weight: Any, magnitude: Any, hessian: Any, bits: int, group: int, **wrong: Any) -> Any:
    """A reader's search, with what it gets wrong."""
    errors = []
    for step in range(21):
        s = magnitude ** (step / 20) if "own" in wrong else channel_scale(magnitude, step / 20)
        back = 1 if "kept" in wrong else 1 / s
        rounded = rtn(weight / s if "turned" in wrong else weight * s, bits, group).dequantize()
        approximation = rounded * (s if "turned" in wrong else back)
        error = (approximation - weight) ** 2 if "weights" in wrong else None
        errors.append(float(error.sum()) if error is not None else output_error(approximation, weight, hessian))
    best = int(np.argmax(errors) if "worst" in wrong else np.argmin(errors))
    if "error" in wrong:
        return errors[best]
    return best if "step" in wrong else np.float64(best / 20)


@pytest.mark.parametrize("way", [{}, {"own": True}])
def test_a_right_one_passes(way: dict[str, Any]) -> None:
    assert fault_of(WRITTEN, lambda *case: search(*case, **way)) is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("kept", "The scale is not taken back"),
        ("turned", "works the wrong way"),
        ("weights", "least error of the weights"),
        ("worst", "largest error"),
        ("error", "This is the least error"),
        ("step", "α = step / 20"),
    ],
)
def test_a_wrong_one_is_told_what_is_wrong(wrong: str, said: str) -> None:
    fault = fault_of(WRITTEN, lambda *case: search(*case, **{wrong: True}))
    assert fault is not None
    assert said in fault.said


def test_others() -> None:
    fault = fault_of(WRITTEN, lambda *case: 0)
    assert fault is not None
    assert "0 in every case" in fault.said
    fault = fault_of(WRITTEN, lambda *case: {0.1: 1.0})
    assert fault is not None
    assert "returns a dict of length 1" in fault.said
    with pytest.raises(Unwritten):
        fault_of(WRITTEN, lambda *case: None)


def test_the_best_exponent_of_each_case_is_clear_and_another() -> None:
    sweeps = [sorted(sweep_exponents(*case.values()), key=lambda point: point[1]) for case in WRITTEN.cases()]
    assert all(1.03 * sweep[0][1] < sweep[1][1] for sweep in sweeps)
    answers = [sweep[0][0] for sweep in sweeps]
    assert len(set(answers)) == len(answers)
    assert all(0 < answer < 1 for answer in answers)
