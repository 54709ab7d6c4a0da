"""GPTQ's walk through a block of columns as one kernel; qlab.methods.gptq.round_columns is the definition.

The rows of W do not depend on each other: each program of the kernel takes a tile of rows and goes through the block's columns with
them. It looks to the left: when column j is due, the errors of the block's columns before it, times column j of U, are taken off it;
then it is rounded, and its own error joins the others. These errors stay on the chip, in the program's registers. What reaches memory is
written once: the columns as they were rounded, the codes, the errors. The columns beyond the block get their share of the errors
afterwards, by one product of matrices (qlab.methods.gptq.one_pass), in which a GPU is at its best.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from qlab.methods.kernels.gpu.rounding import nearest

if TYPE_CHECKING:
    from qlab.methods.gptq import Pass

WIDEST, NARROWEST = 128, 1  # columns of a block: the program's errors must fit into its registers
TILE, WARPS = 32, 4  # rows of a program, and the warps of 32 threads that share them


def round_columns(walk: Pass, here: slice) -> Tensor:
    """Round the columns `here` one after another, each with the errors of those before it; return their errors [len(here), out].

    Float32. Where grids are not there beforehand, blocks of columns lie within a group each; the first of a group finds its grid.
    """
    first, count, rows = here.start, here.stop - here.start, walk.work.shape[1]
    if not walk.fixed and first % walk.size == 0:
        end = first + walk.size
        found = walk.grids(walk.work[first:end].T.unsqueeze(1), walk.importance[first:end][None])
        for grids, part in zip((walk.scale, walk.zero), found):
            grids.index_copy_(0, walk.group_of[first : first + 1], part.T)  # by an index on the device, which nobody waits for
    errors = torch.empty_like(walk.work[here])
    near = walk.factor[here, here].T.contiguous()  # row j: what the errors before it do to column j
    with torch.cuda.device_of(errors):  # Triton starts a kernel on the current device
        _round_columns[(triton.cdiv(rows, TILE),)](
            walk.work[here], walk.codes[here], errors, near, walk.scale, walk.zero, walk.group_of[here], count, rows, 2**walk.bits - 1,
            COMPENSATE=walk.compensate, WIDTH=triton.next_power_of_2(count), TILE=TILE, num_warps=WARPS,
        )  # fmt: skip
    return errors


@triton.jit
def _round_columns(
    work, codes, errors, near, scale, zero, group_of, count, rows, levels,
    COMPENSATE: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = row < rows
    place = tl.arange(0, WIDTH)
    made = tl.full((WIDTH, TILE), 0.0, tl.float32)  # the errors so far; zeros of columns still to come
    for j in range(count):
        at = row + tl.cast(j, tl.int64) * rows
        column = tl.load(work + at, mask=inside, other=0.0)
        group = tl.load(group_of + j) * rows
        step = tl.load(scale + group + row, mask=inside, other=1.0)
        middle = tl.load(zero + group + row, mask=inside, other=0.0)
        if COMPENSATE:
            spread = tl.load(near + j * count + place, mask=place < count, other=0.0)
            column -= tl.sum(made * spread[:, None], axis=0)
            tl.store(work + at, column, mask=inside)
        code = tl.clamp(nearest(tl.div_rn(column, step)) + middle, 0.0, tl.cast(levels, tl.float32))
        tl.store(codes + at, tl.cast(code, tl.uint8), mask=inside)
        if COMPENSATE:
            error = tl.div_rn(column - (code - middle) * step, tl.load(near + j * count + j))
            tl.store(errors + at, error, mask=inside)
            made = tl.where((place == j)[:, None], error[None, :], made)
