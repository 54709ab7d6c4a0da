"""A round of coordinate descent through a block of columns in one pass; qlab.methods.settle.settle_columns is the definition.

As in round_columns, a tile of rows goes through the block's columns. When column j is due, the changes of the block's columns before it,
times column j of H, are taken off its gradient; then its code moves to the bottom of the parabola.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from qlab.methods.kernels.cpu.compiling import TILE, compiled, share_rows
from qlab.support.threads import half_the_threads

WIDEST = 64  # columns of a block
PANEL = 256  # columns whose changes reach the gradient of all columns together: fewer passes through its memory


@half_the_threads()
def settle_columns(
    codes: Tensor, gradient: Tensor, hessian: Tensor, step: Tensor, first: int, size: int, levels: int, stay: float
) -> Tensor:
    """Round columns once more, one after another, each as the changes before it leave it; return the changes of their values.

    As the plain function: `codes` float32 [columns, out] are changed in place, the changes are float32 [columns, out].
    """
    changes = torch.empty_like(gradient)
    near = (stay / hessian.diagonal().double()).float()
    tensors = (codes, changes, gradient, hessian.contiguous(), step, near)
    share_rows(codes.shape[1], partial(_settle, *(each.numpy() for each in tensors), first, size, levels, TILE))
    return changes


@compiled
def _settle(codes, changes, gradient, hessian, step, near, before, size, levels, tile, start, stop):
    whole = np.float32(12582912.0)  # 1.5 · 2²³, beside which FP32 has whole numbers only: adding it and taking it off rounds
    none, one, top, far = np.float32(0.0), np.float32(1.0), np.float32(levels), np.float32(1e6)
    count = len(codes)
    made = np.empty((count, tile), np.float32)  # the changes of the tile so far
    moved = np.empty(tile, np.float32)
    for first in range(start, stop, tile):
        rows = min(tile, stop - first)
        for j in range(count):
            for row in range(rows):
                moved[row] = none
            for k in range(j):
                curve = hessian[j, k]
                for row in range(rows):
                    moved[row] += made[k, row] * curve
            group, part = (before + j) // size, near[j]
            for row in range(rows):
                code, pitch = codes[j, first + row], step[group, first + row]
                pace = one / pitch if pitch != none else none  # a sub-block may have a step of zero
                way = (part * gradient[j, first + row] - part * moved[row]) * pace
                better = (min(max(way, -far), far) + whole) - whole
                better = min(max(better + code, none), top)
                change = (better - code) * pitch
                codes[j, first + row] = better
                made[j, row] = change
                changes[j, first + row] = change
