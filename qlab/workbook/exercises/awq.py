"""Lesson 2: search the exponent of AWQ's scale."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qlab.methods.awq import STEPS, channel_scale, output_error, scaled_rtn, sweep_exponents
from qlab.methods.rtn import rtn
from qlab.workbook.exercises.answer import Asked
from qlab.workbook.exercises.trial import Case, Mistake, Numbers, Written
from qlab.workbook.language.spoken import say

SEEDS = (0, 1, 2, 5)  # in whose layers the second best exponent is 3 % worse at least, so that rounding in FP32 does not decide


def best_exponent(weight: Tensor, magnitude: Tensor, hessian: Tensor, bits: int, group: int) -> float:
    """The exponent α, one of 0, 1/20, …, 1, whose scale leaves the least output error."""
    errors = {}
    for step in range(21):
        scale = channel_scale(magnitude, step / 20)
        approximation = rtn(weight * scale, bits, group).dequantize() / scale
        errors[step / 20] = output_error(approximation, weight, hessian)
    return min(errors, key=lambda alpha: errors[alpha])


def qlabs(weight: Tensor, magnitude: Tensor, hessian: Tensor, bits: int, group: int) -> float:
    """qlab's own sweep; the first of equal errors."""
    return min(sweep_exponents(weight, magnitude, hessian, bits, group), key=lambda point: point[1])[0]


def cases() -> list[Case]:
    """Layers of 4 outputs and 8 inputs, two channels of which are far more active; in each the best exponent is clear, and another."""
    found: list[Case] = []
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(4, 8, generator=generator)
        inputs = torch.randn(64, 8, generator=generator) * torch.tensor([1.0, 1, 12, 1, 1, 5, 1, 1])
        found.append({"weight": weight, "magnitude": inputs.abs().mean(0), "hessian": inputs.T @ inputs, "bits": 3, "group": 4})
    return found


Judge = Callable[[Tensor, Tensor, Tensor], float]


def searched(round_scaled: Callable[[Tensor, Tensor, int, int], Tensor], judge: Judge = output_error) -> Callable[..., float]:
    """The search with another rounding or another error."""

    def search(weight: Tensor, magnitude: Tensor, hessian: Tensor, bits: int, group: int) -> float:
        scales = {step / STEPS: channel_scale(magnitude, step / STEPS) for step in range(STEPS + 1)}
        errors = {alpha: judge(round_scaled(weight, scale, bits, group), weight, hessian) for alpha, scale in scales.items()}
        return min(errors, key=lambda alpha: errors[alpha])

    return search


def weight_error(approximation: Tensor, weight: Tensor, hessian: Tensor) -> float:
    return float((approximation - weight).square().sum())


def least_error(weight: Tensor, magnitude: Tensor, hessian: Tensor, bits: int, group: int) -> float:
    return min(error for _, error in sweep_exponents(weight, magnitude, hessian, bits, group))


def worst(weight: Tensor, magnitude: Tensor, hessian: Tensor, bits: int, group: int) -> float:
    return max(sweep_exponents(weight, magnitude, hessian, bits, group), key=lambda point: point[1])[0]


def differs(case: Case, found: Tensor, expected: float) -> str:
    """The errors at the two exponents."""
    sweep = {round(alpha, 6): error for alpha, error in sweep_exponents(*case.values())}
    alpha = round(float(found), 6)
    if alpha not in sweep:
        return say("{found:g} is none of the exponents 0, 1/20, …, 1.", found=float(found))
    text = "At α = {alpha:g} the output error is {error:.4g}; at α = {best:g} it is {least:.4g}, which is the least."
    return say(text, alpha=alpha, error=sweep[alpha], best=expected, least=sweep[round(expected, 6)])


WRITTEN = Written(
    solution=best_exponent,
    expected=qlabs,
    cases=cases,
    form=Numbers("one number, the exponent α"),
    mistakes=(
        Mistake(lambda **case: STEPS * qlabs(**case), "This is the number of the step. The exponent is α = step / 20."),
        Mistake(least_error, "This is the least error. Return the exponent that has it."),
        Mistake(worst, "This is the exponent with the largest error. Look for the least."),
        Mistake(
            searched(scaled_rtn, weight_error),
            "This exponent has the least error of the weights. Look for the least error of the layer's output, as output_error has it.",
        ),
        Mistake(
            searched(lambda weight, scale, bits, group: rtn(weight * scale, bits, group).dequantize()),
            "The scale is not taken back: after rounding, divide by it, as the operation before the layer does.",
        ),
        Mistake(
            searched(lambda weight, scale, bits, group: rtn(weight / scale, bits, group).dequantize() * scale),
            "The scale works the wrong way: multiply the weights by it before rounding, and divide by it afterwards.",
        ),
        Mistake(
            lambda **case: 0.0,
            "The exponent is 0 in every case, which is plain rounding. Either the scale does not enter the rounding, or the search stops "
            "at the first α.",
        ),
    ),
    differs=differs,
    hints=(
        "For every α: scale the weights, round them, take the scale back, measure. Keep the α with the least error.",
        "`channel_scale(magnitude, alpha)` is s, one number for each input channel, so for each column of the weight.",
        "`rtn(…, bits, group).dequantize()` rounds. Then divide by s: this is what the layer computes with.",
        "`output_error(approximation, weight, hessian)` measures. A dictionary {α: error} and min(…, key=…) find the best.",
    ),
)

ASKED = {
    "α of your model": Asked(
        "α",
        qlabs,
        "Your function on this layer gives it. Choose the layer in the control of 2.2: the answer is its lowest point.",
        tolerance=0.06,
    ),
}
