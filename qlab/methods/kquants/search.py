"""The search for a block's grid: which scale (and offset) leaves the least weighted error after rounding.

All blocks of a chunk are searched at once. Tensors are [size, m]: a block is a *column*, so that every step, the sums over
a block included, runs along contiguous memory. What is sought follows ggml-quants.c: make_qkx2_quants and make_qkx3_quants
(scale and offset), make_qx_quants, make_q3_quants and make_qp_quants (scale alone).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qlab.methods.kquants.codebook import Codebook

TINY = 1e-30  # under any weight that FP16 scales can express, over float32's subnormals
NORMAL = torch.finfo(torch.float32).tiny  # the smallest divisor whose reciprocal is finite: 0 / it is 0, not NaN
RIDGE = 1 + 1e-6  # keeps the least squares solvable where all codes of a block are the same


def search_affine(x: Tensor, weight: Tensor, levels: int, trials: Sequence[float], room: Tensor) -> tuple[Tensor, Tensor]:
    """Scale s ≥ 0 and offset o ≤ 0 of x ≈ s·q + o, q in 0 … levels: float32 [size, m] twice → two float32 [m].

    Each trial stretches a block's range over so many steps (15.4 say, of 15), rounds, and solves the weighted least squares
    for the codes so found. `weight` is how much each error counts; it is normalised in place. `room` float32 [4, size, m] is
    overwritten: fresh memory would cost as much time as the arithmetic.
    """
    above, pull, codes, product = room
    low = x.amin(0).clamp_(max=0)
    extent = x.amax(0).sub_(low)
    inverse = extent.clamp(min=TINY).reciprocal_()
    weight.mul_(weight.sum(0).clamp_(min=TINY).reciprocal_())
    mean = torch.mul(weight, x, out=product).sum(0)
    # Both scale and offset are fitted to x less its mean: what every grid explains cancels here, not in the comparison of gains.
    torch.sub(x, mean, out=pull).mul_(weight)
    torch.sub(x, low, out=above)
    highest = -mean  # of an offset: the formats store none above zero
    best_scale, best_offset = extent / levels, low - mean
    best_gain = torch.full_like(low, -torch.inf)
    for trial in trials:
        torch.mul(above, inverse * trial, out=codes).round_()
        if trial >= levels + 0.5:
            codes.clamp_(max=levels)
        s_qx = torch.mul(pull, codes, out=product).sum(0)
        s_q = torch.mul(weight, codes, out=product).sum(0)
        s_qq = product.mul_(codes).sum(0)
        free = s_qx / (s_qq * RIDGE).addcmul_(s_q, s_q, value=-1)
        offset = torch.minimum(free.mul_(s_q).neg_(), highest)
        scale = torch.addcmul(s_qx, offset, s_q, value=-1).div_(s_qq)  # the best for that offset
        gain = s_q.mul_(scale).add_(offset).mul_(offset).neg_().addcmul_(scale, s_qx)  # what they take off the error
        better = gain > best_gain  # never where a sum was 0 / 0: such a block keeps its plain range
        best_gain = torch.fmax(best_gain, gain)
        best_scale = torch.where(better, scale, best_scale)
        best_offset = torch.where(better, offset, best_offset)
    return best_scale, best_offset.add_(mean).clamp_(max=0)


def search_scale(
    x: Tensor, weight: Tensor, lowest: int, highest: int, trials: Sequence[float], room: Tensor, book: Codebook | None = None
) -> Tensor:
    """Scale s of x ≈ s·q, q a whole number in lowest … highest, or one of the values of `book`: float32 [size, m] twice → float32 [m].

    The value farthest from zero falls on the longer side of the codes (−32 of −32 … 31, so s may be negative); each trial
    sends it to another number there (31.5 say), rounds, and solves the weighted least squares. `room` float32 [3, size, m] is
    overwritten.
    """
    pull, codes, product = room
    farthest = extreme(x)
    side = -1.0 if lowest < 0 else 1.0
    best_scale = farthest * (side / max(-lowest, highest))
    best_gain = torch.full_like(farthest, -torch.inf)
    inverse = side / farthest.masked_fill(farthest.abs() < TINY, 1)  # below, FP16 knows no scale: codes of zero
    torch.mul(weight, x, out=pull)
    for trial in trials:
        torch.mul(x, inverse * trial, out=codes)
        if book is None:
            codes.round_().clamp_(lowest, highest)
        else:
            book.nearest_(codes)
        s_qx = torch.mul(pull, codes, out=product).sum(0)
        s_qq = torch.mul(weight, codes, out=product).mul_(codes).sum(0)
        scale = s_qx / s_qq.clamp_(min=NORMAL)
        gain = s_qx.mul_(scale)  # what it takes off the error
        best_scale.lerp_(scale, (gain > best_gain).float())  # one or the other (both are finite), in a third of torch.where's time
        best_gain = torch.maximum(best_gain, gain)
    return best_scale


def extreme(x: Tensor) -> Tensor:
    """The value farthest from zero of each block, the first of equals: [size, m] → [m]."""
    low, high = x.amin(0), x.amax(0)
    farthest = torch.where(high > -low, high, low)
    ties = (high == -low).nonzero().squeeze(-1)
    if ties.numel():  # the sign is then the first one's
        columns = x[:, ties]
        farthest[ties] = columns.gather(0, columns.abs().argmax(0, keepdim=True)).squeeze(0)
    return farthest
