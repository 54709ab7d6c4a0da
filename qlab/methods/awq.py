"""Activation-aware weight quantization (AWQ, Lin et al. 2023): scale up the input channels that carry large activations.

A channel scaled by s before rounding has its error divided by s wherever s does not widen its group's range; the
inverse goes into the operation before, so the function computed stays the same. The loss ‖Q(W·diag(s))·diag(s)⁻¹·X − W·X‖²
is had from H = XᵀX alone: with E = Q(W·diag(s))·diag(s)⁻¹ − W it is trace(E·H·Eᵀ), so no token is touched in the search.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlab.methods.rtn import rtn


def output_error(approximation: Tensor, weight: Tensor, hessian: Tensor) -> float:
    """Relative squared error of the layer's output: trace(E·H·Eᵀ) / trace(W·H·Wᵀ), E = approximation − weight [out, in]."""
    error = approximation.float() - weight.float()
    signal = ((weight.float() @ hessian) * weight.float()).sum()
    return float(((error @ hessian) * error).sum() / signal)


def scaled_rtn(weight: Tensor, scale: Tensor, bits: int, group_size: int = 128) -> Tensor:
    """Q(W·diag(s))·diag(s)⁻¹: round the scaled weight [out, in], undo the scale [in]; float32 [out, in]."""
    return rtn(weight.float() * scale, bits, group_size).dequantize() / scale


def channel_scale(magnitude: Tensor, exponent: float) -> Tensor:
    """s = mean|x|^α of each input channel [in], normalised so that its extremes lie evenly about 1 (section 3.2)."""
    scale = magnitude.clamp(min=1e-6 * float(magnitude.max()) + 1e-12).pow(exponent)
    return scale / torch.sqrt(scale.max() * scale.min())


def sweep_exponents(
    weight: Tensor, magnitude: Tensor, hessian: Tensor, bits: int, group_size: int = 128, steps: int = 20
) -> list[tuple[float, float]]:
    """The search of section 3.2, whole: (α, relative output error) for `steps` + 1 exponents from 0 (plain RTN) to 1."""
    found = []
    for step in range(steps + 1):
        exponent = step / steps
        approximation = scaled_rtn(weight, channel_scale(magnitude, exponent), bits, group_size)
        found.append((exponent, output_error(approximation, weight, hessian)))
    return found


def protect_channels(weight: Tensor, channels: Tensor, bits: int, group_size: int = 128) -> Tensor:
    """RTN of `weight` [out, in] with the named input channels left in full precision (the paper's table 1)."""
    approximation = rtn(weight, bits, group_size).dequantize()
    approximation[:, channels] = weight.float()[:, channels]
    return approximation
