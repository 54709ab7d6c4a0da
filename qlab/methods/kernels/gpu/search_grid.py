"""The search for grids as one kernel; qlab.methods.grid_search.search_grid is the definition.

A program takes some rows of a group. Their weights are read once and stay on the chip, where each trial shrinks the range, rounds, and
finds the least-squares scale for the codes; only the best scale and zero point of each row are written. Where the metric is a block of
H, what it makes of the codes comes from the matrix units, as in refit: H as the sum of two numbers of 11 bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qlab.methods.kernels.gpu.rounding import nearest

ELEMENTS = 2048  # weights of a program: they and what a trial makes of them must fit into its registers
TILE, DEPTH, WIDEST = 32, 32, 256  # with blocks of H: rows of a program, columns of H that it multiplies at a time, columns of a group


def search_grid(groups: Tensor, levels: int, symmetric: bool, metric: Tensor, steps: int, pace: float) -> tuple[Tensor, Tensor]:
    """Scale and zero point of least error for each group: [out, groups, group_size] → two float32 [out, groups].

    `metric` float32 [groups, group_size], what an error in each column costs, or [groups, group_size, group_size], blocks of H for groups
    of up to WIDEST. Each of `steps` trials shrinks the range by `pace` more.
    """
    rows, count, size = groups.shape
    blocks = metric.ndim == 3
    groups, width = groups.float(), triton.next_power_of_2(max(16, size) if blocks else size)
    tile = TILE if blocks else max(1, ELEMENTS // width)
    warps = max(4, width // TILE) if blocks else min(16, 4 * max(1, width // ELEMENTS))
    scale, zero = (torch.empty(rows, count, device=groups.device) for _ in range(2))
    with torch.cuda.device_of(groups):  # Triton starts a kernel on the current device
        _search_grid[(triton.cdiv(rows, tile), count)](
            groups, metric.contiguous(), scale, zero, rows, count, size, *groups.stride(),
            levels, steps, pace, SYMMETRIC=symmetric, BLOCKS=blocks, TILE=tile, WIDTH=width, DEPTH=min(DEPTH, width), num_warps=warps,
        )  # fmt: skip
    return scale, zero


@triton.jit
def _search_grid(
    groups, metric, scale, zero, rows, count, size, stride_row, stride_group, stride_column,
    levels, steps, pace, SYMMETRIC: tl.constexpr, BLOCKS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row = tl.cast(tl.program_id(0) * TILE + tl.arange(0, TILE), tl.int64)
    group = tl.program_id(1)
    column = tl.arange(0, WIDTH)
    inside = row < rows
    lines = groups + row * stride_row + group * stride_group
    where = lines[:, None] + tl.cast(column, tl.int64)[None, :] * stride_column
    weights = tl.load(where, mask=inside[:, None] & (column < size)[None, :], other=0.0)
    if BLOCKS:
        cost = metric + tl.cast(group, tl.int64) * size * size  # of the group's block of H
    else:
        cost = tl.load(metric + group * size + column, mask=column < size, other=0.0)[None, :]
    top = tl.cast(levels, tl.float32)
    widest, centre = _cover(weights, top, SYMMETRIC)
    best_scale, best_zero, best_factor = widest, centre, widest * 0.0 + 1.0
    best_error = widest * 0.0 + float("inf")
    for trial in range(steps + 1):
        factor = widest * 0.0 + (1.0 - pace * trial)
        found, error = _attempt(weights, cost, widest * factor, centre, top, lines, stride_column, inside, size, BLOCKS, DEPTH)
        better = error < best_error
        best_scale, best_error = tl.where(better, found, best_scale), tl.where(better, error, best_error)
        best_factor = tl.where(better, factor, best_factor)
    about = best_factor
    if SYMMETRIC:
        for trial in range(3):  # the other sign of the scale, with three ranges about the best
            found, error = _attempt(
                weights, cost, -widest * (about + (trial - 1) * pace), centre, top, lines, stride_column, inside, size, BLOCKS, DEPTH
            )
            better = error < best_error
            best_scale, best_error = tl.where(better, found, best_scale), tl.where(better, error, best_error)
    else:
        for trial in range(6):  # the zero point one lower, then one higher; each with three ranges about the best
            moved = tl.clamp(centre + (trial // 3 * 2 - 1), 1.0, top)
            found, error = _attempt(
                weights, cost, widest * (about + (trial % 3 - 1) * pace), moved, top, lines, stride_column, inside, size, BLOCKS, DEPTH
            )
            better = error < best_error
            best_scale, best_error = tl.where(better, found, best_scale), tl.where(better, error, best_error)
            best_zero = tl.where(better, moved, best_zero)
    tl.store(scale + row * count + group, best_scale, mask=inside)
    tl.store(zero + row * count + group, best_zero, mask=inside)


@triton.jit
def _cover(weights, top, SYMMETRIC: tl.constexpr):
    """Scale and zero point [rows] that just cover each row, as qlab.methods.grid_search.first_grid has them."""
    if SYMMETRIC:
        scale = tl.div_rn(2.0 * tl.max(tl.abs(weights), axis=1), top)
        middle = scale * 0.0 + (top + 1.0) / 2
    else:
        high = tl.maximum(tl.max(weights, axis=1), 0.0)
        low = tl.minimum(tl.min(weights, axis=1), -tl.div_rn(high, top - 1.0))
        scale = tl.div_rn(high - low, top)
        middle = tl.clamp(nearest(tl.div_rn(-low, tl.where(scale > 0, scale, 1.0))), 1.0, top)
    scale = tl.where(scale > 0, scale, 1.0)
    scale = tl.maximum(tl.cast(tl.cast(scale, tl.float16), tl.float32), 6e-8)
    if SYMMETRIC:  # the further side of the grid serves the longer tail
        scale = tl.where(tl.max(weights, axis=1) > -tl.min(weights, axis=1), -scale, scale)
    return scale, middle


@triton.jit
def _attempt(weights, cost, shrunk, middle, top, lines, stride_column, inside, size, BLOCKS: tl.constexpr, DEPTH: tl.constexpr):
    """The least-squares scale [rows] of the codes that grids of the scale `shrunk` give, and the error that it leaves; with blocks of H,
    less what the weights themselves cost, which is the same for all scales."""
    whole = _codes(weights, shrunk, middle, top)
    if BLOCKS:
        seen = _seen(weights, cost, shrunk, middle, top, lines, stride_column, inside, size, DEPTH)
        cross = tl.sum(weights * seen, axis=1)
    else:
        seen = cost * whole
        cross = tl.sum(cost * weights * whole, axis=1)
    square = tl.sum(seen * whole, axis=1)
    sign = tl.where(shrunk < 0, -1.0, 1.0)
    scale = tl.where(cross * sign > 0, tl.div_rn(cross, tl.maximum(square, 1e-30)), shrunk)
    scale = sign * tl.maximum(tl.abs(tl.cast(tl.cast(scale, tl.float16), tl.float32)), 6e-8)  # as it will be stored
    if BLOCKS:
        error = scale * (scale * square - 2.0 * cross)
    else:
        error = tl.sum((whole * scale[:, None] - weights) * (seen * scale[:, None] - cost * weights), axis=1)
    return scale, error


@triton.jit
def _codes(weights, shrunk, middle, top):
    """Codes less their zero points, [rows, columns]; zero for a weight of zero."""
    return tl.clamp(nearest(tl.div_rn(weights, shrunk[:, None])) + middle[:, None], 0.0, top) - middle[:, None]


@triton.jit
def _seen(weights, block, shrunk, middle, top, lines, stride_column, inside, size, DEPTH: tl.constexpr):
    """What the group's block of H makes of the codes: [rows, columns]."""
    column = tl.arange(0, weights.shape[1])
    seen = weights * 0.0
    for left in range(0, size, DEPTH):
        line = left + tl.arange(0, DEPTH)
        part = tl.load(
            lines[:, None] + tl.cast(line, tl.int64)[None, :] * stride_column, mask=inside[:, None] & (line < size)[None, :], other=0.0
        )
        codes = _codes(part, shrunk, middle, top)
        values = tl.load(block + line[:, None] * size + column[None, :], mask=(line < size)[:, None] & (column < size)[None, :], other=0.0)
        high = tl.cast((tl.cast(values, tl.int32, bitcast=True) + 4096) & -8192, tl.float32, bitcast=True)  # rounded to 11 bits
        seen = tl.dot(codes, high, seen, input_precision="tf32")
        seen = tl.dot(codes, values - high, seen, input_precision="tf32")
    return seen
