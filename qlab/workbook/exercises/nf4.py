"""Lesson 5: one block of weights to the nearest of 16 levels."""

from __future__ import annotations

import torch
from torch import Tensor

from qlab.methods.nf4 import BLOCK, nf4, normal_levels, stored_bits, uniform_levels
from qlab.workbook.exercises.answer import Asked
from qlab.workbook.exercises.trial import Case, Mistake, Numbers, Written, first_difference
from qlab.workbook.language.spoken import say


def round_block(weights: Tensor, levels: Tensor) -> Tensor:
    """One block of weights, float32 [n], and levels [16] from −1 to 1 → the weights that come back, [n]."""
    absmax = weights.abs().max()
    if absmax == 0:  # a block of zeros: nothing to divide by
        return torch.zeros_like(weights)
    distances = (weights[:, None] / absmax - levels).abs()
    return levels[distances.argmin(dim=1)] * absmax


def qlabs(weights: Tensor, levels: Tensor) -> Tensor:
    """qlab's own: one block."""
    return nf4(weights[None], levels).dequantize()[0]


def cases() -> list[Case]:
    """Blocks whose largest magnitude is positive or negative, on both sets of levels; and one of zeros."""
    found: list[Case] = [{"weights": torch.tensor([0.3, -0.9, 0.05, 0.5, -0.2, 0.0]), "levels": normal_levels()}]
    for seed, levels in enumerate((normal_levels(), uniform_levels())):
        generator = torch.Generator().manual_seed(seed)
        found.append({"weights": 0.05 * torch.randn(BLOCK, generator=generator), "levels": levels})
    return [*found, {"weights": torch.zeros(4), "levels": normal_levels()}]


def nearest(scaled: Tensor, levels: Tensor) -> Tensor:
    return (scaled[:, None] - levels).abs().argmin(dim=1)


def level_below(scaled: Tensor, levels: Tensor) -> Tensor:
    return levels[(scaled[:, None] >= levels - 1e-6).sum(dim=1).clamp(min=1) - 1]


def own(weights: Tensor) -> Tensor:
    """absmax; 1 for a block of zeros."""
    absmax = weights.abs().max()
    return absmax.where(absmax > 0, torch.ones_like(absmax))


def by_largest(weights: Tensor, levels: Tensor) -> Tensor:
    largest = weights.max().where(weights.max() > 0, torch.ones(()))
    return levels[nearest(weights / largest, levels)] * largest


def by_deviation(weights: Tensor, levels: Tensor) -> Tensor:
    spread = weights.std().where(weights.std() > 0, torch.ones(()))
    return levels[nearest(weights / spread, levels)] * spread


def differs(case: Case, found: Tensor, expected: Tensor) -> str:
    """Values that are no level; else where."""
    distances = (found[:, None] / own(case["weights"]) - case["levels"]).abs().amin(dim=1)
    if bool((distances > 1e-3).any()):
        text = "{found:.4g} is no level times absmax, which is {absmax:.4g} here."
        return say(text, found=float(found[int(distances.argmax())]), absmax=float(own(case["weights"])))
    return first_difference(found, expected.double(), 1e-3)


WRITTEN = Written(
    solution=round_block,
    expected=qlabs,
    cases=cases,
    form=Numbers("the rounded weights, as many as were given"),
    mistakes=(
        Mistake(lambda weights, levels: weights, "The weights come back as they were: nothing is rounded."),
        Mistake(
            lambda weights, levels: nearest(weights / own(weights), levels),
            "These are the codes. Return the levels that they stand for, times absmax.",
        ),
        Mistake(
            lambda weights, levels: levels[nearest(weights / own(weights), levels)],
            "absmax is missing on the way back: the levels lie between −1 and 1, so multiply by it again.",
        ),
        Mistake(
            lambda weights, levels: levels[nearest(weights, levels)],
            "The weights are compared with the levels as they are. Divide the block by its absmax first, and multiply by it at the end.",
        ),
        Mistake(
            lambda weights, levels: levels[nearest(weights, levels)] * own(weights),
            "absmax is missing on the way in: divide the weights by it before you look for the nearest level.",
        ),
        Mistake(
            by_largest,
            "The block is divided by its largest weight. Take the largest magnitude: the weight farthest from zero may be negative.",
        ),
        Mistake(
            by_deviation,
            "The block is divided by its standard deviation. NF4 divides by the largest magnitude, so that all weights lie in −1 … 1.",
        ),
        Mistake(
            lambda weights, levels: level_below(weights / own(weights), levels) * own(weights),
            "Each weight goes to the level below it. Take the nearest level, above or below.",
        ),
    ),
    differs=differs,
    hints=(
        "Three steps: divide by absmax, find the nearest level, multiply by absmax.",
        "absmax is the largest magnitude of the block: one number, never negative.",
        "`scaled[:, None] - levels` has a row for each weight and a column for each level. Which column of a row is nearest to zero?",
        "`argmin(dim=1)` gives the place of the nearest level. A block of zeros has an absmax of 0: return zeros before you divide.",
    ),
)


def saved_by_doubling() -> float:
    """MB that double quantization saves on 8 billion weights."""
    return 8e9 * (stored_bits(False) - stored_bits(True)) / 8 / 1e6


def relative_error(weight: Tensor, rows: int = 64) -> float:
    """Squared error of NF4 in % of the squared weights, of the first rows of a layer, in blocks of 64."""
    weight = weight[:rows].float()
    return 100 * float((nf4(weight).dequantize() - weight).square().sum() / weight.square().sum())


ASKED = {
    "MB saved": Asked("MB", saved_by_doubling, "Bits saved a weight, times weights, over 8 bits a byte and a million bytes a MB."),
    "NF4's error on your model": Asked(
        "% of the squared weights",
        relative_error,
        "100 times the sum of the squared differences, divided by the sum of the squared weights, over all blocks of the 64 rows.",
    ),
}
