"""A trial of grids in the metric of blocks of H, but for the products of matrices; qlab.methods.grid_search.Trial is the definition."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from qlab.methods.kernels.cpu.compiling import compiled, share_rows

if TYPE_CHECKING:
    from qlab.methods.grid_search import Best


def less_zero(groups: Tensor, scale: Tensor, zero: Tensor, bits: int, out: Tensor) -> Tensor:
    """Nearest codes of `groups` [..., group_size] on the grids [...], less their zero points; float32, in `out`."""
    share(_round, (groups, out), (scale, zero), 2**bits - 1)
    return out


def offer(
    groups: Tensor, target: Tensor, whole: Tensor, seen: Tensor, shrunk: Tensor, zero: Tensor, factor: Tensor, best: Best
) -> None:  # fmt: skip
    """Put the least-squares scales of the codes `whole` into `best`, as the plain function; all contiguous."""
    share(_offer, (groups, target, whole, seen), (shrunk, zero, factor, best.scale, best.zero, best.error, best.factor))


def share(kernel, matrices: tuple[Tensor, ...], vectors: tuple[Tensor, ...], *numbers: int) -> None:
    """Call the kernel with contiguous [..., group_size] as matrices, and [...] as vectors."""
    flat = [each.view(-1, each.shape[-1]).numpy() for each in matrices] + [each.view(-1).numpy() for each in vectors]
    share_rows(len(flat[0]), partial(kernel, *flat, *numbers))


@compiled
def _round(groups, out, scale, zero, levels, start, stop):
    whole = np.float32(12582912.0)  # 1.5 · 2²³, beside which FP32 has whole numbers only: adding it and taking it off rounds
    none, top, far = np.float32(0.0), np.float32(levels), np.float32(1e6)
    for row in range(start, stop):
        step, middle = scale[row], zero[row]
        for column in range(groups.shape[1]):
            code = (min(max(groups[row, column] / step, -far), far) + whole) - whole
            out[row, column] = min(max(code + middle, none), top) - middle


@compiled
def _offer(groups, target, whole, seen, shrunk, zero, factor, best_scale, best_zero, best_error, best_factor, start, stop):
    none, least = np.float32(0.0), np.float32(1e-30)
    for row in range(start, stop):
        cross, square = _sums(target, whole, seen, row)
        tried = shrunk[row]
        same = cross > none if tried > none else cross < none
        scale = _stored(cross / max(square, least) if same else tried)
        error = _cost(groups, target, whole, seen, row, scale)
        if error < best_error[row]:
            best_scale[row], best_zero[row], best_error[row], best_factor[row] = scale, zero[row], error, factor[row]


@partial(compiled, sums=True)
def _sums(target, whole, seen, row):
    cross = square = np.float32(0.0)
    for column in range(target.shape[1]):
        cross += target[row, column] * whole[row, column]
        square += seen[row, column] * whole[row, column]
    return cross, square


@partial(compiled, sums=True)
def _cost(groups, target, whole, seen, row, scale):
    total = np.float32(0.0)
    for column in range(target.shape[1]):
        total += (whole[row, column] * scale - groups[row, column]) * (seen[row, column] * scale - target[row, column])
    return total


@compiled
def _stored(scale):
    """A scale as FP16 holds it, never zero, with its sign (qlab.methods.grid.storable)."""
    exponent = max(math.frexp(scale)[1], -13)  # below 2⁻¹⁴, FP16's steps get no smaller
    size = math.ldexp(np.rint(math.ldexp(abs(scale), 11 - exponent)), exponent - 11)  # 11 significant bits, halves to even
    size = max(size, 6e-8) if size < 65536.0 else np.inf
    return np.float32(math.copysign(size, scale))
