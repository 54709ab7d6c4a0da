"""Lesson 3's exercise: readers' ways to write GPTQ's loop, and what each is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qlab.methods.awq import output_error
from qlab.methods.gptq import gptq, inverse_factor
from qlab.methods.grid import fit_grid
from qlab.workbook.exercises.gptq import WRITTEN, error_left, hessian_of
from qlab.workbook.exercises.trial import Unwritten, fault_of


def by_numpy(weight: Any, factor: Any, scale: Any, zero: Any, bits: int) -> Any:
    w, u, s, z = (np.array(part, dtype=np.float64) for part in (weight, factor, scale, zero))
    out = np.zeros_like(w)
    for j in range(w.shape[1]):
        out[:, j] = (np.clip(np.round(w[:, j] / s) + z, 0, 2**bits - 1) - z) * s
        error = (w[:, j] - out[:, j]) / u[j, j]
        for k in range(j + 1, w.shape[1]):
            w[:, k] -= error * u[j, k]
    return out


def loop(weight: Any, factor: Any, scale: Any, zero: Any, bits: int, wrong: str) -> Any:
    work, out = weight.clone(), torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        codes = ((work[:, j] / scale).round() + zero).clamp(0, 2**bits - 1)
        out[:, j] = (codes - zero) * scale
        error = (weight if wrong == "original" else work)[:, j] - out[:, j]
        if wrong != "undivided":
            error = error / factor[j, j]
        later = factor[j + 1 :, j] if wrong == "column" else factor[j, j + 1 :]
        change = error[:, None] * later[None]
        if wrong == "added":
            work[:, j + 1 :] += change
        elif wrong == "next":
            work[:, j + 1 : j + 2] -= change[:, :1]
        elif wrong != "none":
            work[:, j + 1 :] -= change
    return work if wrong == "work" else out.T if wrong == "turned" else out


def test_a_right_one_passes_in_numpy() -> None:
    assert fault_of(WRITTEN, by_numpy) is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("none", "plain rounding"),
        ("column", "row j, not column j"),
        ("undivided", "not divided by U[j, j]"),
        ("added", "The sign is wrong"),
        ("original", "taken from the first weights"),
        ("next", "Only the next column"),
        ("work", "as they stood when their turn came"),
        ("turned", "Rows and columns are exchanged"),
    ],
)
def test_a_wrong_one_is_told_what_is_wrong(wrong: str, said: str) -> None:
    fault = fault_of(WRITTEN, lambda *case: loop(*case, wrong=wrong))
    assert fault is not None
    assert said in fault.said
    assert tuple(fault.case["weight"].shape) == (2, 4)  # small enough to be read


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (lambda weight, *rest: torch.zeros_like(weight), "The first column is wrong already"),
        (lambda weight, *rest: weight, "not on the grid"),
        (
            lambda weight, factor, scale, zero, bits: by_numpy(
                weight, torch.diag(factor.diagonal()) + 2 * factor.triu(1), scale, zero, bits
            ),
            "The result is wrong at row 1, column 3",
        ),
    ],
)
def test_another_wrong_one_is_told_where(found: Any, said: str) -> None:
    fault = fault_of(WRITTEN, found)
    assert fault is not None
    assert said in fault.said


def test_an_empty_one_is_not_wrong() -> None:
    def gap(weight: Any, factor: Any, scale: Any, zero: Any, bits: int) -> Any:
        for _ in range(weight.shape[1]):
            raise NotImplementedError

    with pytest.raises(Unwritten):
        fault_of(WRITTEN, gap)


def test_the_cases_are_those_of_qlabs_function() -> None:
    for case in WRITTEN.cases():
        own = gptq(case["weight"], hessian_of(case["factor"]), case["bits"], -1, damping=0)
        assert torch.equal(own.scales[:, 0], case["scale"])
        assert torch.equal(own.zeros[:, 0].float(), case["zero"])
        assert not torch.equal(
            own.dequantize(), gptq(case["weight"], hessian_of(case["factor"]), case["bits"], -1, compensate=False).dequantize()
        )


def test_the_answer_on_a_model_is_what_a_right_function_finds() -> None:
    generator = torch.Generator().manual_seed(5)
    weight, inputs = (
        torch.randn(16, 48, generator=generator),
        torch.randn(200, 48, generator=generator) + 2 * torch.randn(200, 1, generator=generator),
    )
    hessian = inputs.T @ inputs
    factor, _ = inverse_factor(hessian, torch.arange(48), 0.01)
    scale, zero = fit_grid(weight, 4, symmetric=False)
    back = torch.as_tensor(by_numpy(weight, factor, scale, zero, 4)).float()
    assert error_left(weight, hessian) == pytest.approx(100 * output_error(back, weight, hessian), rel=1e-3)
    plain = loop(weight, factor, scale, zero, 4, wrong="none")
    assert output_error(plain, weight, hessian) > 1.5 * output_error(back, weight, hessian)
