"""Lesson 1: round one group of weights to the nearest points of an asymmetric grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qlab.methods.rtn import rtn
from qlab.workbook.exercises.answer import Asked
from qlab.workbook.exercises.trial import Case, Mistake, Numbers, Written, first_difference
from qlab.workbook.language.spoken import say


def round_group(weights: Tensor, bits: int) -> Tensor:
    """One group of weights, float32 [n] → the weights that come back, [n]."""
    levels = 2**bits - 1
    low, high = weights.min().clamp(max=0), weights.max().clamp(min=0)
    scale = (high - low) / levels
    if scale == 0:  # a group of zeros: nothing to divide by
        return torch.zeros_like(weights)
    zero = (-low / scale).round()
    codes = ((weights / scale).round() + zero).clamp(0, levels)
    return (codes - zero) * scale


def qlabs(weights: Tensor, bits: int) -> Tensor:
    """qlab's own: one row, one group."""
    return rtn(weights[None], bits, group_size=-1).dequantize()[0]


def cases() -> list[Case]:
    """Groups whose grid FP16 holds exactly and in which no weight lies half-way between two points; a negative one, and one of zeros."""
    found: list[Case] = [
        {"weights": on_grid([0, 15, 4, 6, 5, 11], zero=5, step=0.25, beside=[0, 0, 0.3, -0.3, 0.2, 0.4]), "bits": 4},
        {"weights": on_grid([7, 0, 2, 3], zero=1, step=0.5, beside=[0, 0, -0.3, 0.3]), "bits": 3},
        {"weights": on_grid([0, 7, 11, 13], zero=15, step=0.125, beside=[0, 0.3, -0.4, 0.2]), "bits": 4},
    ]
    generator = torch.Generator().manual_seed(1)
    for bits, zero in ((2, 1), (4, 9), (8, 100)):
        codes = torch.randint(0, 2**bits, (32,), generator=generator)
        codes[:2] = torch.tensor([0, 2**bits - 1])
        beside = 0.8 * torch.rand(32, generator=generator) - 0.4
        beside[codes == 0], beside[codes == 2**bits - 1] = beside[codes == 0].abs(), -beside[codes == 2**bits - 1].abs()
        beside[:2] = 0
        found.append({"weights": on_grid(codes.tolist(), zero, 1 / 64, beside.tolist()), "bits": bits})
    return [*found, {"weights": torch.zeros(4), "bits": 4}]


def on_grid(codes: Sequence[float], zero: int, step: float, beside: Sequence[float]) -> Tensor:
    """Weights that lie `beside` their grid points, by less than half a step."""
    return (torch.tensor(codes) + torch.tensor(beside) - zero) * step


def grid(weights: Tensor, bits: int) -> tuple[Tensor, Tensor, int]:
    """Scale, zero point and largest code."""
    low, high, levels = weights.min().clamp(max=0), weights.max().clamp(min=0), 2**bits - 1
    scale = (high - low) / levels
    scale = scale.where(scale > 0, torch.ones_like(scale))
    return scale, (-low / scale).round(), levels


def symmetric(weights: Tensor, bits: int) -> Tensor:
    return rtn(weights[None], bits, group_size=-1, symmetric=True).dequantize()[0]


def zero_not_subtracted(weights: Tensor, bits: int) -> Tensor:
    scale, zero, levels = grid(weights, bits)
    return ((weights / scale).round() + zero).clamp(0, levels) * scale


def zero_forgotten(weights: Tensor, bits: int) -> Tensor:
    scale, _, levels = grid(weights, bits)
    return (weights / scale).round().clamp(0, levels) * scale


def zero_not_added(weights: Tensor, bits: int) -> Tensor:
    scale, zero, levels = grid(weights, bits)
    return ((weights / scale).round().clamp(0, levels) - zero) * scale


def rounded_down(weights: Tensor, bits: int) -> Tensor:
    scale, zero, levels = grid(weights, bits)
    return (((weights / scale).floor() + zero).clamp(0, levels) - zero) * scale


def a_step_too_many(weights: Tensor, bits: int) -> Tensor:
    scale, _, levels = grid(weights, bits)
    scale = scale * levels / 2**bits
    zero = (-weights.min().clamp(max=0) / scale).round()
    return (((weights / scale).round() + zero).clamp(0, levels) - zero) * scale


def codes_alone(weights: Tensor, bits: int) -> Tensor:
    scale, zero, levels = grid(weights, bits)
    return ((weights / scale).round() + zero).clamp(0, levels)


def differs(case: Case, found: Tensor, expected: Tensor) -> str:
    """Too many values for the bits; weights moved by more than half a step; else where."""
    weights, bits = case["weights"], case["bits"]
    if len(found.unique()) > 2**bits:
        text = "{found} different values come back, and {bits} bits have only {codes} codes."
        return say(text, found=len(found.unique()), bits=bits, codes=2**bits)
    moved, step = (found - weights).abs(), grid(weights, bits)[0]
    if bool((moved > 0.51 * step).any()):
        far = int(moved.argmax())
        text = "The weight {weight:.4g} comes back as {found:.4g}, more than half a step ({half:.4g}) away."
        return say(text, weight=float(weights[far]), found=float(found[far]), half=float(step) / 2)
    return first_difference(found, expected.double(), 1e-3)


WRITTEN = Written(
    solution=round_group,
    expected=qlabs,
    cases=cases,
    form=Numbers("the rounded weights, as many as were given", tolerance=2e-3),
    mistakes=(
        Mistake(lambda weights, bits: weights, "The weights come back as they were: nothing is rounded."),
        Mistake(codes_alone, "These are the codes. Subtract the zero point and multiply by the scale, so that weights come back."),
        Mistake(
            symmetric,
            "This is a symmetric grid: it takes the scale from the largest magnitude and puts zero in the middle. An asymmetric grid goes "
            "from the smallest weight to the largest.",
        ),
        Mistake(
            zero_not_subtracted,
            "The zero point is missing on the way back: a weight is (q − z) · s, not q · s. So a weight of 0 does not come back as 0.",
        ),
        Mistake(
            zero_forgotten,
            "The zero point is missing: negative weights all come back as 0, because their codes are cut off at 0.",
        ),
        Mistake(
            zero_not_added,
            "The zero point is missing on the way in: the code is round(w / s) + z. Without z, negative weights are cut off at code 0.",
        ),
        Mistake(rounded_down, "The weights are rounded down. Round to the nearest code."),
        Mistake(a_step_too_many, "The scale is too small: 2ᵇ codes are 2ᵇ − 1 steps apart from the first to the last, not 2ᵇ."),
    ),
    differs=differs,
    hints=(
        "Three steps: the grid (scale and zero point), the codes, and back to weights.",
        "The scale is the distance from `low` to `high`, divided by the number of steps. b bits give 2ᵇ codes, so how many steps?",
        "The zero point is the code of the weight 0: how many steps lie between `low` and 0? It is a whole number.",
        "A group of zeros has a scale of 0. Return zeros before you divide by it.",
    ),
)


def stored_bits() -> float:
    """Of a weight in groups of 64 with 4-bit codes, an FP16 scale and a 4-bit zero point."""
    return 4 + (16 + 4) / 64


def relative_error(weight: Tensor, group: int, bits: int = 3, rows: int = 64) -> float:
    """Squared error of RTN in % of the squared weights, of the first rows of a layer."""
    weight = weight[:rows].float()
    return 100 * float((rtn(weight, bits, group).dequantize() - weight).square().sum() / weight.square().sum())


ASKED = {
    "bits a weight": Asked(
        "bits a weight", stored_bits, "Each group of 64 weights adds 16 + 4 bits; spread them over the 64.", tolerance=0.002
    ),
    "GB of a 70B model": Asked(
        "GB", lambda: 68 * stored_bits() / 8, "Weights times bits, divided by 8 bits a byte; a GB is a billion bytes."
    ),
    "rounding error of your model": Asked(
        "% of the squared weights",
        relative_error,
        "100 times the sum of the squared differences, divided by the sum of the squared weights, over all 64 rows, at 3 bits.",
    ),
}
