"""One round of coordinate descent through a block of columns as one kernel; qlab.methods.settle.settle_columns is the definition.

As in round_columns: a program takes a tile of rows and looks to the left. When column j is due, the changes of the block's columns
before it, times column j of H, are taken off its gradient; then its code moves to the bottom of the parabola, and by how much its value
changed is kept on the chip for the columns after it. The gradient of all columns gets the changes afterwards, by one product of matrices
(qlab.methods.settle.descend).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qlab.methods.kernels.gpu.rounding import nearest

WIDEST = 128  # columns of a block: the program's changes must fit into its registers
PANEL = 512  # columns whose changes reach the gradient of all columns together: four blocks, which a product of FP32 matrices likes better
TILE, WARPS = 32, 4  # rows of a program, and the warps of 32 threads that share them


def settle_columns(
    codes: Tensor, gradient: Tensor, hessian: Tensor, step: Tensor, first: int, size: int, levels: int, stay: float
) -> Tensor:
    """Round columns once more, one after another, each as the changes before it leave it; return the changes of their values.

    As the plain function: `codes` float32 [columns, out] are changed in place, the changes are float32 [columns, out].
    """
    count, rows = codes.shape
    changes = torch.empty_like(gradient)
    near = (stay / hessian.diagonal().double()).float()
    with torch.cuda.device_of(codes):  # Triton starts a kernel on the current device
        _settle_columns[(triton.cdiv(rows, TILE),)](
            codes, changes, gradient, hessian.contiguous(), step, near, first, size, count, rows, levels,
            WIDTH=triton.next_power_of_2(count), TILE=TILE, num_warps=WARPS,
        )  # fmt: skip
    return changes


@triton.jit
def _settle_columns(
    codes, changes, gradient, hessian, step, near, first, size, count, rows, levels, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = row < rows
    place = tl.arange(0, WIDTH)
    made = tl.full((WIDTH, TILE), 0.0, tl.float32)  # the changes so far; zeros of columns still to come
    for j in range(count):
        at = row + tl.cast(j, tl.int64) * rows
        slope = tl.load(gradient + at, mask=inside, other=0.0)
        code = tl.load(codes + at, mask=inside, other=0.0)
        pitch = tl.load(step + tl.cast((first + j) // size, tl.int64) * rows + row, mask=inside, other=0.0)
        curve = tl.load(hessian + j * count + place, mask=place < count, other=0.0)
        part = tl.load(near + j)
        way = part * slope - part * tl.sum(made * curve[:, None], axis=0)  # to the bottom, as the changes before it leave it
        inverse = tl.div_rn(pitch * 0.0 + 1.0, pitch)
        pace = tl.where(tl.abs(inverse) < float("inf"), inverse, 0.0)  # a sub-block may have a step of zero
        better = tl.clamp(nearest(way * pace) + code, 0.0, tl.cast(levels, tl.float32))  # counted in codes
        change = (better - code) * pitch
        tl.store(codes + at, better, mask=inside)
        tl.store(changes + at, change, mask=inside)
        made = tl.where((place == j)[:, None], change[None, :], made)
