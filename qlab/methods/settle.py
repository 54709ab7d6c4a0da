"""Going over finished codes again, by coordinate descent (QuantEase, Behdin et al. 2023, algorithm 1).

GPTQ rounds a column knowing the errors of those before it, and never comes back to it; a K-quant's rounding knows of no column but
its own. Here each column is rounded once more with all others as they now stand: E·H·Eᵀ of the error E = W − Ŵ, H damped, is a
parabola in every single weight, and the grid point nearest to its bottom is the best, so that it can only fall (but for FP32's own
errors). Between the rounds the scales of grouped integers are fitted to their codes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from qlab.methods.grid import GroupedIntegers, Points
from qlab.methods.grid_search import refit_scales
from qlab.methods.kquant_fit import reciprocal
from qlab.methods.kquants import Superblocks

BLOCK = 128  # columns whose changes reach the rest of the gradient together
ROUNDS = 2


def settle(layer: GroupedIntegers, weight: Tensor, hessian: Tensor, rounds: int = ROUNDS) -> tuple[GroupedIntegers, Tensor]:
    """A better layer of the same form, and the weights float32 [out, in] that its codes were rounded from, but for the last changes.

    `weight` [out, in] is what it stands for, H = XᵀX `hessian` float32 [in, in], shrunk and damped (qlab.methods.hessian).
    Consecutive groups only.
    """
    for _ in range(rounds):
        codes, exact = one_round(layer.codes, layer.points, weight, hessian)
        layer = refit_scales(replace(layer, codes=codes), weight, hessian)
    return layer, exact.T


def settle_blocks(blocks: Superblocks, weight: Tensor, hessian: Tensor, rounds: int = ROUNDS) -> Superblocks:
    """Better codes for llama.cpp's blocks, whose scales stay, of the `weight` float32 [out, in]; H float32 [in, in] as in `settle`."""
    codes = blocks.codes.view(blocks.shape)
    for _ in range(rounds):
        codes, _ = one_round(codes, blocks.points, weight, hessian)
    return replace(blocks, codes=codes.view(blocks.codes.shape))


def one_round(codes: Tensor, points: Points, weight: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Every column in turn (QuantEase, algorithm 1): the new codes uint8 [out, in], and the bottoms of the parabolas at the end [in, out].

    `weight` float32 [out, in]; H `hessian` float32 [in, in], whose diagonal must be positive.
    """
    columns, groups = len(hessian), points.step.shape[1]
    size = columns // groups
    step, offset = points.step.T.contiguous(), points.offset.T.contiguous()
    pace = reciprocal(step)  # a sub-block may have a scale of zero
    codes = codes.T.clone(memory_format=torch.contiguous_format)  # a column of W is a contiguous row
    present = codes.float().view(groups, size, -1).mul_(step[:, None]).add_(offset[:, None]).view(codes.shape)
    gradient = hessian @ (weight.T - present)  # H·Eᵀ: how far lowering the error wants to move each weight, times its curvature
    curvature = hessian.diagonal().tolist()
    for first in range(0, columns, BLOCK):
        here = slice(first, min(first + BLOCK, columns))
        changes = torch.empty_like(present[here])
        for j in range(here.start, here.stop):
            group = j // size
            bottom = torch.add(present[j], gradient[j], alpha=1 / curvature[j])
            rounded = bottom.sub_(offset[group]).mul_(pace[group]).round_().clamp_(0, points.levels)
            codes[j] = rounded
            value = torch.addcmul(offset[group], rounded, step[group])
            changes[j - first] = value - present[j]
            present[j] = value
            gradient[here].addr_(hessian[here, j], changes[j - first], alpha=-1)
        for rest in (slice(0, here.start), slice(here.stop, columns)):
            gradient[rest].addmm_(hessian[rest, here], changes, alpha=-1)
    bottoms = gradient.div_(hessian.diagonal()[:, None]).add_(present)
    return codes.T.contiguous(), bottoms
