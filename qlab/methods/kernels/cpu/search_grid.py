"""The search for grids in the metric of single columns; qlab.methods.grid_search.search_grid is the definition.

A tile of rows of a group is read once; each trial rounds it and sums up what its error costs, and nothing of that is written.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from qlab.methods.grid_search import first_grid
from qlab.methods.kernels.cpu.compiling import TILE, compiled, share_rows
from qlab.support.threads import half_the_threads

WIDEST = 0  # blocks of H are products of matrices, which PyTorch has (grid_trials)


@half_the_threads()
def search_grid(groups: Tensor, levels: int, symmetric: bool, metric: Tensor, steps: int, pace: float) -> tuple[Tensor, Tensor]:
    """Scale and zero point of least error for each group: [out, groups, group_size] → two float32 [out, groups].

    `metric` float32 [groups, group_size]. Each of `steps` trials shrinks the range by `pace` more.
    """
    weights = groups.permute(1, 2, 0).float().contiguous()  # rows of W side by side: they are computed together
    first, centre = (each.T.float().contiguous() for each in first_grid(groups, levels.bit_length(), symmetric))
    scale, zero = torch.empty_like(first), torch.empty_like(first)
    tensors = (weights, metric.float().contiguous(), first, centre, scale, zero)
    share_rows(len(groups), partial(_search, *(each.numpy() for each in tensors), levels, symmetric, steps, np.float32(pace), TILE))
    return scale.T.contiguous(), zero.T.contiguous()


@compiled
def _search(weights, metric, cover, middle, scale, zero, levels, symmetric, steps, pace, tile, start, stop):
    one, top = np.float32(1.0), np.float32(levels)
    size = weights.shape[1]
    tried, point = np.empty(tile, np.float32), np.empty(tile, np.float32)
    found, error = np.empty(tile, np.float32), np.empty(tile, np.float32)
    best, centre = np.empty(tile, np.float32), np.empty(tile, np.float32)
    # The tile's weights, and what the metric makes of them. All these are arrays of their own, not parts of one: numba then knows that they
    # do not overlap, and computes several rows at once.
    near, wanted = np.empty((size, tile), np.float32), np.empty((size, tile), np.float32)
    for group in range(len(weights)):
        for first in range(start, stop, tile):
            rows = min(tile, stop - first)
            for row in range(rows):
                best[row] = np.inf
                centre[row] = one
                scale[group, first + row], zero[group, first + row] = cover[group, first + row], middle[group, first + row]
            for column in range(size):
                for row in range(rows):
                    near[column, row] = weights[group, column, first + row]
                    wanted[column, row] = metric[group, column] * near[column, row]
            for trial in range(steps + (4 if symmetric else 7)):
                for row in range(rows):
                    part, sign, shift = one - pace * np.float32(trial), one, np.float32(0.0)
                    if trial > steps:  # about the best range: the other sign of the scale, or the zero point one lower and one higher
                        part = centre[row] + np.float32((trial - steps - 1) % 3 - 1) * pace
                        if symmetric:
                            sign = -one
                        else:
                            shift = np.float32((trial - steps - 1) // 3 * 2 - 1)
                    tried[row] = cover[group, first + row] * (sign * part)
                    point[row] = middle[group, first + row]
                    if shift:
                        point[row] = min(max(point[row] + shift, one), top)
                _try(near, wanted, metric[group], tried, point, top, rows, found, error)
                for row in range(rows):
                    if error[row] < best[row]:
                        best[row] = error[row]
                        scale[group, first + row], zero[group, first + row] = found[row], point[row]
                        if trial <= steps:
                            centre[row] = one - pace * np.float32(trial)


@compiled
def _try(near, wanted, metric, tried, point, top, rows, found, error):
    """The least-squares scale `found` of the codes that grids of the scale `tried` give, and the `error` that it leaves."""
    none, one, least = np.float32(0.0), np.float32(1.0), np.float32(1e-30)
    cross, square = np.zeros(rows, np.float32), np.zeros(rows, np.float32)
    for row in range(rows):
        error[row] = none
    for column in range(len(near)):
        cost = metric[column]
        for row in range(rows):
            code = _code(near[column, row], tried[row], point[row], top)
            cross[row] += wanted[column, row] * code
            square[row] += cost * code * code
    for row in range(rows):
        sign = -one if tried[row] < none else one
        found[row] = cross[row] / max(square[row], least) if cross[row] * sign > none else tried[row]
    _store(found, rows)
    for column in range(len(near)):
        cost = metric[column]
        for row in range(rows):
            code = _code(near[column, row], tried[row], point[row], top)
            error[row] += (code * found[row] - near[column, row]) * (cost * code * found[row] - wanted[column, row])


@compiled
def _code(weight, scale, zero, top):
    """The nearest code of a weight, less its zero point."""
    whole, far = np.float32(12582912.0), np.float32(1e6)  # 1.5 · 2²³: beside it FP32 has whole numbers only, so that adding it rounds
    code = (min(max(weight / scale, -far), far) + whole) - whole
    return min(max(code + zero, np.float32(0.0)), top) - zero


@compiled
def _store(scale, rows):
    """Round scales as FP16 holds them, never zero, each with its sign (qlab.methods.grid.storable)."""
    grid, smallest = np.float32(0.75), np.float32(6e-8)  # beside 0.75, FP32 has FP16's steps below its normal numbers, 2⁻²⁴
    bits = scale.view(np.int32)
    for row in range(rows):
        negative = bits[row] < 0
        size = abs(scale[row])
        small = (min(size, np.float32(1e-4)) + grid) - grid
        bits[row] = (bits[row] & 0x7FFFFFFF) + 0xFFF + ((bits[row] >> 13) & 1) & -8192  # to 11 significant bits, halves to even
        normal = scale[row] if scale[row] < np.float32(65536.0) else np.float32(np.inf)
        stored = max(small if size < np.float32(6.103515625e-05) else normal, smallest)
        scale[row] = -stored if negative else stored
