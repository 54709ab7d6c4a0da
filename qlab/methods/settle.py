"""Going over finished codes again, by coordinate descent (QuantEase, Behdin et al. 2023, algorithm 1).

GPTQ rounds a column knowing the errors of those before it, and never comes back to it; a K-quant's rounding knows of no column but
its own. Here each column is rounded once more with all others as they now stand: E·H·Eᵀ of the error E = W − Ŵ, H damped, is a
parabola in every single weight, and the grid point nearest to its bottom is the best, so that it can only fall (but for FP32's own
errors). Between the rounds the scales of grouped integers are fitted to their codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from qlab.methods import kernels
from qlab.methods.grid import GroupedIntegers, Points
from qlab.methods.grid_search import refit_scales
from qlab.methods.kquants.blocks import Superblocks
from qlab.methods.kquants.codebook import Codebook
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
        layer = refit_scales(replace(layer, codes=codes), weight, hessian, exact.T)
    return layer, exact.T


def settle_blocks(blocks: Superblocks, weight: Tensor, hessian: Tensor, rounds: int = ROUNDS) -> Superblocks:
    """Better codes for llama.cpp's blocks, whose scales stay, of the `weight` float32 [out, in]; H float32 [in, in] as in `settle`."""
    codes, _ = descend(blocks.codes.view(blocks.shape), blocks.points, weight, hessian, rounds)
    return replace(blocks, codes=codes.view(blocks.codes.shape))


@torch.no_grad()
def descend(codes: Tensor, points: Points, weight: Tensor, hessian: Tensor, rounds: int = 1) -> tuple[Tensor, Tensor]:
    """Every column in turn, `rounds` times (QuantEase, algorithm 1), on points that stay.

    `codes` uint8 [out, in], left as they are; `weight` float32 [out, in]; H `hessian` float32 [in, in], symmetric, whose diagonal must be
    positive. Returns the new codes, and the bottoms of the parabolas at the end [in, out]. Codes of a codebook have no kernel: the plain
    function rounds them on every device.
    """
    columns, groups = len(hessian), points.step.shape[1]
    size = columns // groups
    step, offset = points.step.T.contiguous(), points.offset.T.contiguous()
    counted = codes.T.to(torch.float32, memory_format=torch.contiguous_format)  # a column of W is a contiguous row
    if points.book is not None:
        points.book.values_(counted)  # of which one is a step

    def values() -> Tensor:
        return (counted.view(groups, size, -1) * step[:, None]).add_(offset[:, None]).view(counted.shape)

    error = values()
    torch.sub(weight.T, error, out=error)  # Eᵀ, in place: memory is what a walk is short of
    settle_block: Callable[..., Tensor] = partial(settle_columns, book=points.book)
    width, panel = BLOCK, BLOCK
    if points.book is None and (kernel := kernels.found("settle_columns", weight.device)):
        settle_block, width, panel = kernel.settle_columns, kernel.WIDEST, kernel.PANEL
    with kernels.quick_products(weight.device):
        gradient = hessian @ error  # H·Eᵀ: how far lowering the error wants to move each weight, times its curvature
        del error
        for _ in range(rounds):
            for first in range(0, columns, panel):
                end = min(first + panel, columns)
                slopes = gradient[first:end].clone()  # brought up to date block by block, and the whole gradient by all blocks at once
                changes = torch.empty_like(slopes)
                for start in range(first, end, width):
                    here = slice(start, min(start + width, end))
                    part, rest = slice(start - first, here.stop - first), slice(here.stop, end)
                    changes[part] = settle_block(counted[here], slopes[part], hessian[here, here], step, start, size, points.levels, STAY)
                    slopes[part.stop :].addmm_(hessian[rest, here], changes[part], alpha=-1)
                gradient.addmm_(hessian[:, first:end], changes, alpha=-1)
    bottoms = gradient.div_(hessian.diagonal()[:, None]).add_(values())
    codes = counted if points.book is None else points.book.codes_(counted)
    return codes.T.to(torch.uint8, memory_format=torch.contiguous_format), bottoms


@half_the_threads()
def settle_columns(
    codes: Tensor, gradient: Tensor, hessian: Tensor, step: Tensor, first: int, size: int, levels: int, stay: float,
    book: Codebook | None = None,
) -> Tensor:  # fmt: skip
    """Round columns once more, one after another, each as the changes before it leave it; return the changes of their values.

    `codes` [columns, out], whole numbers up to `levels` in float32, or values of the `book`, are changed in place. `gradient`
    [columns, out] is that of H·Eᵀ before the first of them, H `hessian` [columns, columns] their own block, `step` [groups, out] that of
    all groups of `size` columns; `first` is the place of the first column among all, `stay` the part of the way to the bottom that a
    weight goes.
    """
    paces = reciprocal(step).unbind()  # a sub-block may have a step of zero
    steps = step.unbind()
    new, changes = torch.empty_like(codes), torch.zeros_like(codes)  # zeros: of columns still to come
    curvature = hessian.diagonal().tolist()
    rows = zip(range(first, first + len(codes)), curvature, codes, new, changes, gradient, hessian)
    for j, bend, code, better, change, slope, curve in rows:
        near = stay / bend
        # To the bottom, as the changes before it in this block leave it.
        way = torch.addmv(slope, changes.T, curve, beta=near, alpha=-near)
        torch.mul(way, paces[j // size], out=better)  # counted in steps
        if book is None:
            better.round_().add_(code).clamp_(0, levels)
        else:
            book.nearest_(better.add_(code))
        torch.sub(better, code, out=change).mul_(steps[j // size])
    codes.copy_(new)
    return changes
