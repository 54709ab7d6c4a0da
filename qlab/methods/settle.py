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
from qlab.methods.kquants.blocks import Superblocks
from qlab.methods.kquants.fit import reciprocal
from qlab.support.threads import half_the_threads

BLOCK = 64  # columns whose changes reach the rest of the gradient together
ROUNDS = 2
STAY = 1 - 1e-5  # of the way to the bottom: a weight half-way between two codes keeps the one it has, whatever FP32 makes of it


def settle(layer: GroupedIntegers, weight: Tensor, hessian: Tensor, rounds: int = ROUNDS) -> tuple[GroupedIntegers, Tensor]:
    """A better layer of the same form, and the weights float32 [out, in] that its codes were rounded from, but for the last changes.

    `weight` [out, in] is what it stands for, H = XᵀX `hessian` float32 [in, in], shrunk and damped (qlab.methods.hessian).
    Consecutive groups only.
    """
    exact = weight.T
    for _ in range(rounds):
        del exact  # as large as the weights, and only the last is wanted
        codes, exact = descend(layer.codes, layer.points, weight, hessian)
        layer = refit_scales(replace(layer, codes=codes), weight, hessian)
    return layer, exact.T


def settle_blocks(blocks: Superblocks, weight: Tensor, hessian: Tensor, rounds: int = ROUNDS) -> Superblocks:
    """Better codes for llama.cpp's blocks, whose scales stay, of the `weight` float32 [out, in]; H float32 [in, in] as in `settle`."""
    codes, _ = descend(blocks.codes.view(blocks.shape), blocks.points, weight, hessian, rounds)
    return replace(blocks, codes=codes.view(blocks.codes.shape))


@torch.no_grad()
def descend(codes: Tensor, points: Points, weight: Tensor, hessian: Tensor, rounds: int = 1) -> tuple[Tensor, Tensor]:
    """Every column in turn, `rounds` times (QuantEase, algorithm 1), on points that stay.

    `codes` uint8 [out, in], left as they are; `weight` float32 [out, in]; H `hessian` float32 [in, in], symmetric, whose diagonal must be
    positive. Returns the new codes, and the bottoms of the parabolas at the end [in, out].
    """
    columns, groups = len(hessian), points.step.shape[1]
    size = columns // groups
    step, offset = points.step.T.contiguous(), points.offset.T.contiguous()
    steps, paces = step.unbind(), reciprocal(step).unbind()  # a sub-block may have a step of zero
    codes = codes.T.to(torch.float32, memory_format=torch.contiguous_format)  # a column of W is a contiguous row

    def values() -> Tensor:
        return (codes.view(groups, size, -1) * step[:, None]).add_(offset[:, None]).view(codes.shape)

    error = values()
    torch.sub(weight.T, error, out=error)  # Eᵀ, in place: memory is what a walk is short of
    gradient = hessian @ error  # H·Eᵀ: how far lowering the error wants to move each weight, times its curvature
    del error
    curvature = hessian.diagonal().tolist()
    for _ in range(rounds):
        for first in range(0, columns, BLOCK):
            here = slice(first, min(first + BLOCK, columns))
            new, changes = torch.empty_like(codes[here]), torch.zeros_like(codes[here])  # zeros: of columns still to come
            rows = zip(range(first, columns), codes[here], new, changes, gradient[here], hessian[here, here])
            with half_the_threads():
                for j, code, better, change, slope, curve in rows:
                    near = STAY / curvature[j]
                    # To the bottom, as the changes before it in this block leave it.
                    way = torch.addmv(slope, changes.T, curve, beta=near, alpha=-near)
                    torch.mul(way, paces[j // size], out=better).round_().add_(code).clamp_(0, points.levels)  # counted in codes
                    torch.sub(better, code, out=change).mul_(steps[j // size])
            codes[here] = new
            gradient.addmm_(hessian[:, here], changes, alpha=-1)
    bottoms = gradient.div_(hessian.diagonal()[:, None]).add_(values())
    return codes.T.to(torch.uint8, memory_format=torch.contiguous_format), bottoms
