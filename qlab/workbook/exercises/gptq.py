"""Lesson 3: GPTQ's loop over the columns. What a column loses in rounding, the columns after it take over."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from qlab.methods.awq import output_error
from qlab.methods.gptq import gptq, inverse_factor
from qlab.methods.grid import fit_grid
from qlab.workbook.exercises.answer import Asked
from qlab.workbook.exercises.trial import Case, Mistake, Numbers, Written, first_difference
from qlab.workbook.language.spoken import gettext

DAMPING = 0.01  # the guide's


def quantize_columns(weight: Tensor, factor: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Weights [out, in], U [in, in], one grid a row: scale and zero [out] → the weights that come back, [out, in]."""
    work, result = weight.clone(), torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        codes = ((work[:, j] / scale).round() + zero).clamp(0, 2**bits - 1)
        result[:, j] = (codes - zero) * scale
        error = (work[:, j] - result[:, j]) / factor[j, j]
        work[:, j + 1 :] -= torch.outer(error, factor[j, j + 1 :])
    return result


def qlabs(weight: Tensor, factor: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """qlab's own, with a group as long as the row; it finds U and the grids by itself, from H as `cases` keeps it."""
    return gptq(weight, hessian_of(factor), bits, group_size=-1, damping=0).dequantize()


def hessian_of(factor: Tensor) -> Tensor:
    """H whose inverse is UᵀU."""
    return torch.linalg.inv((factor.T @ factor).double()).float()


@cache
def layers() -> tuple[Case, ...]:
    """Small layers with correlated inputs: the first to be read, the others to make chance agreement unlikely."""
    found = []
    for seed, outputs, inputs, bits in ((0, 2, 4, 3), (1, 3, 6, 4), (2, 4, 8, 2), (3, 8, 32, 4)):
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(outputs, inputs, generator=generator)
        common = torch.randn(256, 1, generator=generator)
        seen = 3 * common + 2 * torch.randn(256, inputs, generator=generator)
        factor, _ = inverse_factor(seen.T @ seen / 256, torch.arange(inputs), DAMPING)
        assert factor is not None
        scale, zero = fit_grid(weight, bits, symmetric=False)
        found.append({"weight": weight, "factor": factor, "scale": scale, "zero": zero, "bits": bits})
    return tuple(found)


def cases() -> list[Case]:
    return list(layers())


def walk(
    weight: Tensor, factor: Tensor, scale: Tensor, zero: Tensor, bits: int,
    divide: bool = True, sign: int = 1, from_original: bool = False, result_of: str = "values",
) -> Tensor:  # fmt: skip
    """The loop with one thing wrong: error not divided, added, or of the first weights; or another of its matrices returned."""
    work, codes = weight.clone(), torch.zeros_like(weight)
    for j in range(weight.shape[1]):
        codes[:, j] = ((work[:, j] / scale).round() + zero).clamp(0, 2**bits - 1)
        error = (weight if from_original else work)[:, j] - (codes[:, j] - zero) * scale
        work[:, j + 1 :] -= sign * torch.outer(error / (factor[j, j] if divide else 1), factor[j, j + 1 :])
    return {"values": (codes - zero[:, None]) * scale[:, None], "codes": codes, "work": work}[result_of]


def plain(weight: Tensor, factor: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    return walk(weight, torch.eye(len(factor)), scale, zero, bits)


def next_alone(weight: Tensor, factor: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Only the column that comes next takes the error over."""
    return walk(weight, factor.triu() - factor.triu(2), scale, zero, bits)


def differs(case: Case, found: Tensor, expected: Tensor) -> str:
    """Values that are not on the grid; the first column, which no error reaches; else where."""
    codes = found / case["scale"][:, None] + case["zero"][:, None]
    if bool(((codes - codes.round()).abs() > 0.02).any()):
        return gettext("Some values are not on the grid, (code − zero) · scale with a whole code. The error changes `work`, not `result`.")
    if bool(((found - expected)[:, 0].abs() > 1e-3).any()):
        return gettext("The first column is wrong already: no error has reached it yet, so it is rounded as it is given.")
    return first_difference(found, expected.double(), 1e-3)


WRITTEN = Written(
    solution=quantize_columns,
    expected=qlabs,
    cases=cases,
    form=Numbers("the weights that come back, a row for each output and a column for each input"),
    mistakes=(
        Mistake(
            plain,
            "This is plain rounding: no error reaches the columns after it. If you do take it off, look where you read U: it is zero "
            "below its diagonal, and row j, not column j, says what the error of column j does.",
        ),
        Mistake(lambda **case: walk(**case, divide=False), "The error of a column is not divided by U[j, j], U's diagonal."),
        Mistake(
            lambda **case: walk(**case, sign=-1),
            "The sign is wrong: the later columns have to make up for the error. Take error · U[j, k] off column k, do not add it.",
        ),
        Mistake(
            lambda **case: walk(**case, divide=False, sign=-1),
            "Two things are wrong: the error is not divided by U[j, j], and it is added to the later columns instead of taken off.",
        ),
        Mistake(
            lambda **case: walk(**case, from_original=True),
            "The error is taken from the first weights. Column j has changed before its turn: take what it is now, `work[:, j]`.",
        ),
        Mistake(next_alone, "Only the next column takes the error over. All columns that are not rounded yet should."),
        Mistake(lambda **case: walk(**case, result_of="codes"), "These are the codes. Return the weights that they stand for."),
        Mistake(
            lambda **case: walk(**case, result_of="work"),
            "These are the weights as they stood when their turn came. Return what they were rounded to.",
        ),
    ),
    differs=differs,
    hints=(
        "Two lines are missing: the error of column j, [out], and what the columns after it do about it, [out, columns left].",
        "The error is what column j was before rounding less what it is now, divided by one number of U: the one on the diagonal.",
        "Row j of U, behind the diagonal, has a number for each later column. Every output takes its own error times that number off.",
        "An outer product, `torch.outer(error, row)`, has the shape of the columns that are left.",
    ),
)


def smaller_by(means: dict[str, float]) -> float:
    return means["RTN"] / means["GPTQ"]


def error_left(weight: Tensor, hessian: Tensor, bits: int = 4) -> float:
    """Relative output error, in %, of GPTQ with one grid a row."""
    return 100 * output_error(gptq(weight, hessian, bits, group_size=-1, damping=DAMPING).dequantize(), weight, hessian)


ASKED = {
    "factor": Asked("times", smaller_by, "Divide RTN's mean error by GPTQ's."),
    "GPTQ's error on your model": Asked(
        "% of the output", error_left, "100 · output_error(what your function returns, weight, hessian).", tolerance=0.05
    ),
}
