"""Going over finished codes again, by coordinate descent (QuantEase, Behdin et al. 2023, algorithm 1).

GPTQ rounds a column knowing the errors of those before it, and never comes back to it. Here each column is rounded once more with
all others as they now stand: E·H·Eᵀ of the error E = W − Ŵ, H damped, is a parabola in every single weight, and the grid point
nearest to its bottom is the best, so that it can only fall (but for FP32's own errors). Between the rounds the scales of a row are
fitted to its codes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from qlab.methods.grid import GroupedIntegers
from qlab.methods.grid_search import refit_scales

BLOCK = 128  # columns whose changes reach the rest of the gradient together
ROUNDS = 2


def damp(hessian: Tensor, damping: float) -> Tensor:
    """H with λ = `damping` · mean diagonal added in place (Frantar et al. 2022, section 3.3, step 3); of zeros alone, the identity."""
    diagonal = hessian.diagonal()
    diagonal.add_(damping * diagonal.mean()).masked_fill_(diagonal == 0, 1)
    return hessian


def settle(
    layer: GroupedIntegers, weight: Tensor, hessian: Tensor, damping: float = 0.01, rounds: int = ROUNDS
) -> tuple[GroupedIntegers, Tensor]:
    """A better layer of the same form, and the weights float32 [out, in] that its codes were rounded from, but for the last changes.

    `weight` [out, in] is what it stands for, H = XᵀX `hessian` [in, in], damped as GPTQ damps at first. Consecutive groups only.
    """
    damped = damp(hessian.float().clone(), damping)
    for _ in range(rounds):
        layer, exact = one_round(layer, weight, damped)
        layer = refit_scales(layer, weight, damped)
    return layer, exact.T


def one_round(layer: GroupedIntegers, weight: Tensor, hessian: Tensor) -> tuple[GroupedIntegers, Tensor]:
    """Every column in turn; the new codes, and the bottoms of the parabolas at the end [in, out]."""
    columns, size = len(hessian), len(hessian) // layer.scales.shape[1]
    scales, zeros = layer.scales.T.contiguous(), layer.zeros.T.float()
    codes = layer.codes.T.clone(memory_format=torch.contiguous_format)
    present = layer.dequantize().T.contiguous()  # a column of Ŵ is a contiguous row
    gradient = hessian @ (weight.T - present)  # H·Eᵀ: how far lowering the error wants to move each weight, times its curvature
    curvature = hessian.diagonal().tolist()
    for first in range(0, columns, BLOCK):
        here = slice(first, min(first + BLOCK, columns))
        changes = torch.empty_like(present[here])
        for j in range(here.start, here.stop):
            step, middle = scales[j // size], zeros[j // size]
            bottom = torch.add(present[j], gradient[j], alpha=1 / curvature[j])
            rounded = bottom.div_(step).round_().add_(middle).clamp_(0, 2**layer.bits - 1)
            codes[j] = rounded
            value = rounded.sub_(middle).mul_(step)
            changes[j - first] = value - present[j]
            present[j] = value
            gradient[here].addr_(hessian[here, j], changes[j - first], alpha=-1)
        for rest in (slice(0, here.start), slice(here.stop, columns)):
            gradient[rest].addmm_(hessian[rest, here], changes, alpha=-1)
    bottoms = gradient.div_(hessian.diagonal()[:, None]).add_(present)
    return replace(layer, codes=codes.T.contiguous()), bottoms
