"""From blocks to their grids and codes: what an error weighs, the search, and the rounding to what the format can store.

Blocks are columns, x float32 [size, m], as in kquant_search.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qlab.methods.kquants.kinds import Kind
from qlab.methods.kquants.search import extreme, search_affine, search_scale

UNDER_HALF = 0.49999997  # the float32 below a half: adding it lifts a half to the next whole number, but nothing smaller


class Grids(NamedTuple):
    """The stored grids of n blocks: integers `scales` and `mins` [n, sub-blocks] in units of `d` and `dmin` [n], all float32."""

    scales: Tensor
    mins: Tensor
    d: Tensor
    dmin: Tensor


def error_weights(x: Tensor, kind: Kind, importance: Tensor | None, row: int, out: Tensor, spare: Tensor) -> Tensor:
    """How much the error of each weight counts: float32 [size, m], in `out`. `row` is the number of weights in a row.

    Overwrites `spare`, as large.
    Large weights count more. Without importance that is √x̄² + |x|, as in quantize_row_q4_K_ref; llama.cpp takes x² for Q3_K and
    Q6_K and |x| for Q2_K, which measured worse. With `importance`, float32 [size, m], see Kind.spread.
    """
    if importance is None:
        mean = torch.mul(x, x, out=out).mean(0)
        return torch.add(torch.abs(x, out=spare), mean.sqrt_(), out=out)
    if kind.spread is None:
        return out.copy_(importance)
    subs = (kind.block if kind.units else row) // kind.size  # the mean of a superblock, or of a row where there are none
    mean = torch.mul(x, x, out=out).mean(0).view(-1, subs).mean(1).mul_(kind.spread).repeat_interleave(subs)
    return out.add_(mean).sqrt_().mul_(importance)


def fit(x: Tensor, kind: Kind, weight: Tensor, trials: Sequence[float], room: Tensor) -> Grids:
    """The grids of superblocks (and of single blocks), searched by `trials` with the errors' weights [size, m].

    Overwrites `weight` and `room` [4, size, m].
    """
    total = weight.sum(0)
    if not kind.affine:
        scale = search_scale(x, weight, *kind.ends, trials, room[:3], kind.book)
        scales, d = in_units(scale, kind, total, signed=True)
        return Grids(scales, torch.zeros_like(scales), d, torch.zeros_like(d))
    scale, offset = search_affine(x, weight, kind.levels, trials, room)
    scales, d = in_units(scale, kind, total)
    # The stored scale is not quite the one found. llama.cpp stores the offset found with the latter; the best offset for the
    # former costs one more rounding and saves up to 3 % of the error.
    step = (d[:, None] * scales).reshape(-1)
    codes = torch.sub(x, offset, out=room[0]).mul_(reciprocal(step)).round_().clamp_(0, kind.levels)
    offset = codes.mul_(-step).add_(x).mul_(weight).sum(0).clamp_(max=0)
    mins, dmin = in_units(offset.neg_(), kind, total)
    return Grids(scales, mins, d, dmin)


def in_units(values: Tensor, kind: Kind, weight: Tensor, signed: bool = False) -> tuple[Tensor, Tensor]:
    """Sub-blocks' values [m] as integers [n, sub-blocks] of an FP16 unit [n] (ggml-quants.c, make_qp_quants)."""
    if not kind.units:
        return torch.ones_like(values)[:, None], half(values)
    subs = kind.block // kind.size
    values, weight = values.view(-1, subs).T.contiguous(), weight.view(-1, subs).T.contiguous()
    lowest, highest = (-kind.units, kind.units - 1) if signed else (0, kind.units)
    trials = [kind.units + 0.2 * i for i in range(-2, 3)]
    unit = half(search_scale(values, weight, lowest, highest, trials, values.new_empty(3, *values.shape)))
    return values.mul_(reciprocal(unit)).round_().clamp_(lowest, highest).T, unit


def codes_on(x: Tensor, kind: Kind, grids: Grids, out: Tensor) -> Tensor:
    """The nearest codes of x [size, m] on the stored grids: float32 [size, m], from 0, in `out`."""
    step = reciprocal((grids.d[:, None] * grids.scales).reshape(-1))
    if kind.affine:
        low = (grids.dmin[:, None] * grids.mins).reshape(-1)
        return torch.add(x, low, out=out).mul_(step).round_().clamp_(0, kind.levels)
    if kind.book:
        return kind.book.codes_(torch.mul(x, step, out=out))
    return torch.mul(x, step, out=out).add_(kind.middle).round_().clamp_(0, kind.levels)


def round_plainly(x: Tensor, kind: Kind, out: Tensor, spare: Tensor) -> tuple[Tensor, Grids]:
    """Codes, in `out`, and grids of blocks of 32 without a search (quantize_row_q8_0_ref, quantize_row_q4_0_ref and their kin)."""
    none = torch.zeros_like(x[0])
    if kind.affine:
        low = x.amin(0)
        d = (x.amax(0) - low) / kind.levels
        codes = torch.sub(x, low, out=out).mul_(reciprocal(d)).add_(0.5)
        return codes.floor_().clamp_(max=kind.levels), single(d, -low)
    if kind.bits < 8:
        d = extreme(x) / -kind.middle  # the farthest value gets the code that only one side has
        codes = torch.mul(x, reciprocal(d), out=out).add_(kind.middle + 0.5)
        return codes.floor_().clamp_(0, kind.levels), single(d, none)
    d = torch.maximum(x.amax(0), -x.amin(0)) / 127
    # Halves go away from zero, as C's roundf has it.
    scaled = torch.mul(x, reciprocal(d), out=out)
    whole = torch.abs(scaled, out=spare).add_(UNDER_HALF).floor_()
    return torch.copysign(whole, scaled, out=out).add_(kind.middle), single(d, none)


def store_codes(codes: Tensor, kind: Kind, spare: Tensor, out: Tensor) -> None:
    """Codes [size, m] float32, from 0, as uint8 into `out` [n, sub-blocks, size]. Overwrites both `codes` and `spare`, as large.

    Turned as floats and cut to int8: torch does either several times faster than the same with uint8.
    """
    wide = kind.bits == 8
    rows = spare.view(-1, codes.shape[0]).copy_((codes.sub_(kind.middle) if wide else codes).T)
    out.view(torch.int8).copy_(rows.view(out.shape))
    if wide:
        out.bitwise_xor_(kind.middle)


def single(d: Tensor, low: Tensor) -> Grids:
    """Grids of blocks with one scale."""
    one = torch.ones_like(d)[:, None]
    return Grids(one, one, half(d), half(low))


def reciprocal(d: Tensor) -> Tensor:
    """1 / d, and zero where that is not finite."""
    inverse = d.reciprocal()
    return inverse.masked_fill_(~inverse.isfinite(), 0)


def half(values: Tensor) -> Tensor:
    """Rounded to what FP16 can hold."""
    return values.half().float()
