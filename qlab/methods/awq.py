"""Activation-aware weight quantization (AWQ, Lin et al. 2023): scale up the input channels that carry large activations.

A channel scaled by s before rounding has its error divided by s wherever s does not widen its group's range; the
inverse goes into the operation before, so the function computed stays the same. The loss ‖Q(W·diag(s))·diag(s)⁻¹·X − W·X‖²
is had from H = XᵀX alone: with E = Q(W·diag(s))·diag(s)⁻¹ − W it is trace(E·H·Eᵀ), so no token is touched in the search.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlab.methods.grid import nearest_values, rows_at_once
from qlab.methods.rtn import rtn
from qlab.support.threads import half_the_threads

STEPS = 20  # the sweep's exponents are i/20, as in the paper's code; an even number, see best_scale


JUDGED = 1024  # rows of a layer that its error is measured on


def judged_rows(rows: int) -> slice:
    """The rows of a layer of so many that `output_error` takes, evenly spaced."""
    return slice(None, None, max(1, rows // JUDGED))


def output_error(approximation: Tensor, weight: Tensor, hessian: Tensor) -> float:
    """Relative squared error of the layer's output: trace(E·H·Eᵀ) / trace(W·H·Wᵀ), E = approximation − weight [out, in].

    Of a layer with many outputs only `judged_rows` are taken; both may be given with these alone.
    """
    rows = judged_rows(weight.shape[0])
    weight = weight[rows].float()
    error = approximation[rows].float() - weight
    signal = ((weight @ hessian) * weight).sum()
    return float(((error @ hessian) * error).sum() / signal.clamp(min=1e-30))


def scaled_rtn(weight: Tensor, scale: Tensor, bits: int, group_size: int = 128, symmetric: bool = False) -> Tensor:
    """Q(W·diag(s))·diag(s)⁻¹: round the scaled weight [out, in], undo the scale [in]; float32 [out, in]."""
    return nearest_values(weight.float() * scale, bits, group_size, symmetric).div_(scale)


def channel_scale(magnitude: Tensor, exponent: float) -> Tensor:
    """s = mean|x|^α of each input channel [in], normalised so that its extremes lie evenly about 1 (section 3.2)."""
    scale = magnitude.clamp(min=1e-4 * float(magnitude.max()) + 1e-12).pow(exponent)
    return scale / torch.sqrt(scale.max() * scale.min())


def sweep_exponents(
    weight: Tensor, magnitude: Tensor, hessian: Tensor, bits: int, group_size: int = 128, steps: int = STEPS, symmetric: bool = False
) -> list[tuple[float, float]]:
    """The search of section 3.2, whole: (α, relative output error) for `steps` + 1 exponents from 0 (plain RTN) to 1."""
    found = []
    for step in range(steps + 1):
        exponent = step / steps
        approximation = scaled_rtn(weight, channel_scale(magnitude, exponent), bits, group_size, symmetric)
        found.append((exponent, output_error(approximation, weight, hessian)))
    return found


@half_the_threads()
def best_scale(weight: Tensor, magnitude: Tensor, mean_square: Tensor, bits: int, group_size: int, symmetric: bool = False) -> Tensor:
    """The scale [in] of least error, for all layers that read the same input: their weights one above another.

    The error is Σ_j E[x_j²]·‖E_j‖², the diagonal of trace(E·H·Eᵀ): rounding errors of different channels have no common
    sign, so what lies off the diagonal averages out, and no matrix product is needed. Over the exponent it falls and rises once, so
    every second one is tried, then the two beside the best.
    """

    def error(step: int) -> float:
        scale, total = channel_scale(magnitude, step / STEPS), 0.0
        for part in weight.split(rows_at_once(weight)):
            scaled = part * scale
            difference = nearest_values(scaled, bits, group_size, symmetric).sub_(scaled)  # s_j times what it is in the layer's weights
            total += float((difference.square_().sum(0) * mean_square / scale.square()).sum())
        return total

    errors = {step: error(step) for step in range(0, STEPS + 1, 2)}
    middle = min(errors, key=errors.__getitem__)
    errors |= {step: error(step) for step in (middle - 1, middle + 1) if 0 <= step <= STEPS}
    return channel_scale(magnitude, min(errors, key=errors.__getitem__) / STEPS)


def protect_channels(weight: Tensor, channels: Tensor, bits: int, group_size: int = 128) -> Tensor:
    """RTN of `weight` [out, in] with the named input channels left in full precision (the paper's table 1)."""
    approximation = rtn(weight, bits, group_size).dequantize()
    approximation[:, channels] = weight.float()[:, channels]
    return approximation
