"""Activations in 8 bits: how a runtime rounds them, token by token or by one stored scale, and the scale of channels by which they and the
weights lose least together."""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 127  # of 8 signed bits, as many below zero as above
STEPS = 20  # exponents that are tried: i/20
SMALLEST = 1e-12


def rounded_by_token(inputs: Tensor) -> Tensor:
    """Activations [..., in] as integers of 8 bits times a scale for each token, symmetric, in the dtype given
    (compressed-tensors' strategy "token", dynamic; vLLM's scaled_int8_quant)."""
    scale = inputs.float().abs().amax(-1, keepdim=True).clamp(min=SMALLEST) / LEVELS
    return ((inputs.float() / scale).round() * scale).to(inputs.dtype)


def rounded_by_scale(inputs: Tensor, scale: Tensor) -> Tensor:
    """Activations [..., in] as integers of 8 bits times one stored `scale`, in the dtype given; what lies beyond its range is cut off
    (compressed-tensors' strategy "tensor", static; vLLM's scaled_int8_quant with a scale)."""
    step = scale.to(inputs.device, torch.float32)
    return ((inputs.float() / step).round().clamp(-LEVELS - 1, LEVELS) * step).to(inputs.dtype)


def largest_step(largest: Tensor) -> Tensor:
    """The stored scale, float32 [], of activations whose channels are at most so large, [in]."""
    return largest.float().max().clamp(min=SMALLEST) / LEVELS


def smoothing_scale(weight: Tensor, mean_square: Tensor, exponent: float) -> Tensor:
    """s_j = r_j^α / w_j^(1−α) of each input channel [in]: SmoothQuant's equation 4 (Xiao et al. 2023), where w_j is the largest |weight| of
    the channel and r_j the root of its mean square activation, instead of the paper's largest: scales are by token here, so one token's
    outlier harms that token alone."""
    activation = mean_square.sqrt().clamp(min=1e-5 * float(mean_square.max().sqrt()) + SMALLEST)
    largest = weight.abs().amax(0).float()
    largest = largest.clamp(min=1e-5 * float(largest.max()) + SMALLEST)
    scale = activation.pow(exponent) / largest.pow(1 - exponent)
    return scale / torch.sqrt(scale.max() * scale.min())


def predicted_error(weight: Tensor, mean_square: Tensor, scale: Tensor) -> float:
    """What 8 bits for both cost once channel j of the activations is divided by s_j and of the weight [out, in] multiplied by it.

    A step Δ makes an error of Δ²/12 a number. Of activations, Δ is the largest channel's root mean square over 127, and meets every
    weight; of row i of the weight, Δ_i is its largest entry over 127, and meets every activation.
    """
    scaled, square = weight.float() * scale, mean_square / scale.square()
    by_activations = float(square.max()) * float(scaled.square().sum())
    by_weights = float(scaled.abs().amax(1).square().sum()) * float(square.sum())
    return (by_activations + by_weights) / (12 * LEVELS**2)


def best_smoothing(weight: Tensor, mean_square: Tensor) -> Tensor:
    """The scale [in] of least predicted error for layers that read the same input, their weights one above another: of 21 exponents, or
    ones, which change nothing."""
    tried = [torch.ones_like(mean_square), *(smoothing_scale(weight, mean_square, step / STEPS) for step in range(STEPS + 1))]
    return min(tried, key=lambda scale: predicted_error(weight, mean_square, scale))
