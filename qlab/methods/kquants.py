"""K-quants: superblocks of 256 weights, whose sub-blocks carry small integer scales under one FP16 scale (llama.cpp).

Q4_K: 8 sub-blocks of 32, x ≈ d·sc·q − dmin·m with q of 4 bits, sc and m of 6: 4.5 bits a weight.
Q6_K: 16 sub-blocks of 16, x ≈ d·sc·q with q of 6 bits about zero and sc of 8: 6.5625 bits a weight.
The grids are searched as llama.cpp searches them (ggml-quants.c: make_qkx2_quants, make_qx_quants), all blocks at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qlab.errors import UserError

SUPERBLOCK = 256
BITS_PER_WEIGHT = {"Q4_K": 4.5, "Q6_K": 6.5625}


@dataclass(frozen=True)
class Superblocks:
    """A quantized tensor of superblocks, n = out · in / 256 of them.

    `codes` uint8 [n, sub-blocks, size] (Q6_K: offset by 32), `scales` and `mins` int16 [n, sub-blocks] (mins zero for Q6_K),
    `d` and `dmin` float32 [n] holding FP16 values.
    """

    kind: str
    shape: tuple[int, int]
    codes: Tensor
    scales: Tensor
    mins: Tensor
    d: Tensor
    dmin: Tensor

    def dequantize(self) -> Tensor:
        """The weights that these blocks stand for: float32 [out, in]."""
        scale = (self.d[:, None] * self.scales)[..., None]
        if self.kind == "Q6_K":
            return (scale * (self.codes.float() - 32)).view(self.shape)
        return (scale * self.codes.float() - (self.dmin[:, None] * self.mins)[..., None]).view(self.shape)

    @property
    def bits_per_weight(self) -> float:
        return BITS_PER_WEIGHT[self.kind]


def q4_k(weight: Tensor) -> Superblocks:
    """Encode a weight [out, in] as Q4_K; `in` must be a multiple of 256 (UserError)."""
    blocks = superblocks(weight, 32)
    scale, low = search_affine(blocks)
    d, dmin = half(scale.amax(-1) / 63), half(low.amax(-1) / 63)
    sc, m = integer_ratio(scale, d, 63), integer_ratio(low, dmin, 63)
    step = (d[:, None] * sc)[..., None]
    shifted = blocks + (dmin[:, None] * m)[..., None]
    codes = torch.where(step > 0, torch.round(shifted / step.clamp(min=1e-30)), 0).clamp(0, 15)
    return Superblocks("Q4_K", (weight.shape[0], weight.shape[1]), codes.to(torch.uint8), sc.short(), m.short(), d, dmin)


def q6_k(weight: Tensor) -> Superblocks:
    """Encode a weight [out, in] as Q6_K; `in` must be a multiple of 256 (UserError)."""
    blocks = superblocks(weight, 16)
    scale = search_symmetric(blocks)
    largest = scale.gather(-1, scale.abs().argmax(-1, keepdim=True))[:, 0]
    d = half(largest / -128)  # the largest scale becomes −128: int8's extra value is not wasted
    sc = torch.where(d[:, None] != 0, torch.round(scale / nonzero(d)[:, None]), 0).clamp(-128, 127)
    step = (d[:, None] * sc)[..., None]
    codes = torch.where(step != 0, torch.round(blocks / nonzero(step)), 0).clamp(-32, 31) + 32
    none = torch.zeros_like(sc, dtype=torch.int16)
    return Superblocks("Q6_K", (weight.shape[0], weight.shape[1]), codes.to(torch.uint8), sc.short(), none, d, torch.zeros_like(d))


def single_scale(weight: Tensor) -> Tensor:
    """The negative control: 4 bits with one scale and minimum for all 256 weights; dequantized, float32 [out, in]."""
    blocks = superblocks(weight, SUPERBLOCK)
    scale, low = search_affine(blocks)
    step = scale[..., None].clamp(min=1e-30)
    return (torch.round((blocks + low[..., None]) / step).clamp(0, 15) * step - low[..., None]).view(weight.shape)


def search_affine(blocks: Tensor, levels: int = 15, steps: int = 20) -> tuple[Tensor, Tensor]:
    """Scale ≥ 0 and offset m ≥ 0 of x ≈ scale·q − m minimising the weighted error: [n, sub, size] → two [n, sub].

    Large weights count more (σ + |x|). Each trial divides the range a little finer or coarser, rounds, and solves the
    two-unknown least squares for the codes so found.
    """
    importance = blocks.square().mean(-1, keepdim=True).sqrt() + blocks.abs()
    low, high = blocks.amin(-1, keepdim=True).clamp(max=0), blocks.amax(-1, keepdim=True)
    extent = (high - low).clamp(min=1e-30)
    best_scale, best_low = extent / levels, low
    best_error = torch.full_like(low, torch.inf)
    for trial in range(-1, steps + 1):
        inverse = levels / extent if trial < 0 else (levels - 1 + 0.1 * trial) / extent
        codes = torch.round((blocks - low) * inverse).clamp(0, levels)
        s_w, s_q, s_qq = importance.sum(-1, True), (importance * codes).sum(-1, True), (importance * codes * codes).sum(-1, True)
        s_x, s_qx = (importance * blocks).sum(-1, True), (importance * codes * blocks).sum(-1, True)
        determinant = s_w * s_qq - s_q * s_q
        safe = determinant.clamp(min=1e-30)
        scale, offset = (s_w * s_qx - s_x * s_q) / safe, (s_qq * s_x - s_q * s_qx) / safe
        positive = offset > 0  # the format stores only minima ≤ 0: refit through zero
        scale = torch.where(positive, s_qx / s_qq.clamp(min=1e-30), scale)
        offset = offset.clamp(max=0)
        error = (importance * (scale * codes + offset - blocks).square()).sum(-1, True)
        better = (error < best_error) & (determinant > 0)
        best_error = torch.where(better, error, best_error)
        best_scale, best_low = torch.where(better, scale, best_scale), torch.where(better, offset, best_low)
    return best_scale.squeeze(-1), -best_low.squeeze(-1)


def search_symmetric(blocks: Tensor, levels: int = 32) -> Tensor:
    """Signed scale of x ≈ scale·q, q in −levels … levels−1, weighting by x²: [n, sub, size] → [n, sub]."""
    importance = blocks.square()
    extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    safe = nonzero(extreme)
    best_scale, best_gain = torch.zeros_like(extreme), torch.full_like(extreme, -1.0)
    for trial in range(-9, 10):
        codes = torch.round(blocks * (-(levels + 0.1 * trial) / safe)).clamp(-levels, levels - 1)
        s_qx, s_qq = (importance * codes * blocks).sum(-1, True), (importance * codes * codes).sum(-1, True)
        gain = s_qx * s_qx / s_qq.clamp(min=1e-30)  # what least squares takes off the error
        better = (gain > best_gain) & (s_qq > 0)
        best_gain = torch.where(better, gain, best_gain)
        best_scale = torch.where(better, s_qx / s_qq.clamp(min=1e-30), best_scale)
    return best_scale.squeeze(-1)


def superblocks(weight: Tensor, size: int) -> Tensor:
    """View a weight [out, in] as float32 [n, 256 / size, size].

    Raises:
        UserError: a row is no multiple of 256.
    """
    if weight.shape[-1] % SUPERBLOCK:
        raise UserError(f"K-quants need rows of a multiple of {SUPERBLOCK} weights, not {weight.shape[-1]}")
    return weight.float().reshape(-1, SUPERBLOCK // size, size)


def nonzero(values: Tensor) -> Tensor:
    """With one in place of zero: something harmless to divide by."""
    return values.where(values != 0, torch.ones_like(values))


def half(values: Tensor) -> Tensor:
    """Rounded to what FP16 can hold."""
    return values.half().float()


def integer_ratio(values: Tensor, unit: Tensor, largest: int) -> Tensor:
    """Each of `values` [n, sub] in whole units [n], 0 … largest; zero where the unit is zero."""
    ratio = values / unit[:, None].clamp(min=1e-30)
    return torch.where(unit[:, None] > 0, torch.round(ratio), 0).clamp(0, largest)
