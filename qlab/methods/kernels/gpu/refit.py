"""The equations for all scales of a row as one kernel; qlab.methods.grid_search.normal_matrix is the definition.

A_gh = c_gᵀ·H·c_h of each row: a program takes a tile of rows and two groups g ≤ h, multiplies the codes of g with H's block [g, h] on
the matrix units, and sums up what the codes of h make of that, which never reaches memory. A is symmetric, so both halves are written.
The units multiply in TF32, numbers of 11 significant bits: whole codes are such, and H is taken as the sum of two. Sums are FP32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE, WARPS = 32, 4  # rows of a program, and the warps of 32 threads that share them
WIDEST, DEPTH = 128, 32  # columns of h and of g that a program multiplies at a time


def normal_matrix(whole: Tensor, hessian: Tensor) -> Tensor:
    """A float32 [out, groups, groups] of `whole` float32 [out, groups, size], codes less their zero points, and H [in, in] float32."""
    rows, groups, size = whole.shape
    matrix = torch.empty(rows, groups, groups, device=whole.device)
    width = min(WIDEST, max(16, triton.next_power_of_2(size)))
    with torch.cuda.device_of(whole):  # Triton starts a kernel on the current device
        # Tiles of rows come first: the programs that run side by side then share H's block.
        _normal_matrix[(triton.cdiv(rows, TILE), groups, groups)](
            whole.half(), hessian.contiguous(), matrix, rows, size, TILE=TILE, WIDTH=width, DEPTH=min(DEPTH, width), num_warps=WARPS
        )
    return matrix


@triton.jit
def _normal_matrix(whole, hessian, matrix, rows, size, TILE: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr):
    first, second, groups = tl.program_id(1), tl.program_id(2), tl.num_programs(1)
    if first <= second:
        columns = groups * size
        row = tl.cast(tl.program_id(0) * TILE + tl.arange(0, TILE), tl.int64)
        inside = row < rows
        part = tl.arange(0, WIDTH)
        total = tl.full((TILE,), 0.0, tl.float32)
        for right in range(0, size, WIDTH):
            column = right + part
            seen = tl.full((TILE, WIDTH), 0.0, tl.float32)
            for left in range(0, size, DEPTH):
                line = left + tl.arange(0, DEPTH)
                there = inside[:, None] & (line < size)[None, :]
                codes = tl.load(whole + row[:, None] * columns + (first * size + line)[None, :], mask=there, other=0.0)
                at = tl.cast(first * size + line, tl.int64)[:, None] * columns + (second * size + column)[None, :]
                block = tl.load(hessian + at, mask=(line < size)[:, None] & (column < size)[None, :], other=0.0)
                high = tl.cast((tl.cast(block, tl.int32, bitcast=True) + 4096) & -8192, tl.float32, bitcast=True)  # rounded to 11 bits
                whole_codes = tl.cast(codes, tl.float32)
                seen = tl.dot(whole_codes, high, seen, input_precision="tf32")
                seen = tl.dot(whole_codes, block - high, seen, input_precision="tf32")
            there = inside[:, None] & (column < size)[None, :]
            codes = tl.load(whole + row[:, None] * columns + (second * size + column)[None, :], mask=there, other=0.0)
            total += tl.sum(seen * tl.cast(codes, tl.float32), axis=1)
        tl.store(matrix + (row * groups + first) * groups + second, total, mask=inside)
        tl.store(matrix + (row * groups + second) * groups + first, total, mask=inside)
