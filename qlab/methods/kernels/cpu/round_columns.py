"""GPTQ's walk through a block of columns in one pass; qlab.methods.gptq.round_columns is the definition.

The rows of W do not depend on each other: a tile of them goes through the block's columns, whose errors stay in the cache. When column j
is due, the errors of the block's columns before it, times column j of U, are taken off it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from qlab.methods.kernels.cpu.compiling import TILE, compiled, share_rows
from qlab.support.threads import half_the_threads

if TYPE_CHECKING:
    from qlab.methods.gptq import Pass

WIDEST = 64  # columns of a block
NARROWEST = 16  # of fewer columns, the products take so long that the plain function is better


@half_the_threads()
def round_columns(walk: Pass, here: slice) -> Tensor:
    """Round the columns `here` one after another, each with the errors of those before it; return their errors [len(here), out].

    Float32. Where grids are not there beforehand, blocks of columns lie within a group each; the first of a group finds its grid.
    """
    first, rows = here.start, walk.work.shape[1]
    if not walk.fixed and first % walk.size == 0:
        end, group = first + walk.size, int(walk.group_of[first])
        found = walk.grids(walk.work[first:end].T.unsqueeze(1), walk.importance[first:end][None])
        walk.scale[group], walk.zero[group] = (part[:, 0] for part in found)
    errors = torch.zeros_like(walk.work[here])
    near = walk.factor[here, here].T.contiguous()  # row j: what the errors before it do to column j
    tensors = (walk.work[here], walk.codes[here], errors, near, walk.scale, walk.zero, walk.group_of[here])
    share_rows(rows, partial(_round, *(each.numpy() for each in tensors), 2**walk.bits - 1, walk.compensate, TILE))
    return errors


@compiled
def _round(work, codes, errors, near, scale, zero, group_of, levels, compensate, tile, start, stop):
    whole = np.float32(12582912.0)  # 1.5 · 2²³, beside which FP32 has whole numbers only: adding it and taking it off rounds
    none, top, far = np.float32(0.0), np.float32(levels), np.float32(1e6)
    count = len(work)
    made = np.empty((count, tile), np.float32)  # the errors of the tile so far
    column = np.empty(tile, np.float32)
    for first in range(start, stop, tile):
        rows = min(tile, stop - first)
        for j in range(count):
            for row in range(rows):
                column[row] = work[j, first + row]
            if compensate:
                for k in range(j):
                    spread = near[j, k]
                    for row in range(rows):
                        column[row] -= made[k, row] * spread
            group, pivot = group_of[j], near[j, j]
            for row in range(rows):
                value, step, middle = column[row], scale[group, first + row], zero[group, first + row]
                code = (min(max(value / step, -far), far) + whole) - whole
                code = min(max(code + middle, none), top)
                codes[j, first + row] = np.uint8(code)
                if compensate:
                    work[j, first + row] = value
                    error = (value - (code - middle) * step) / pivot
                    made[j, row] = error
                    errors[j, first + row] = error
