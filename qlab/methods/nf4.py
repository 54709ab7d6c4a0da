"""4-bit NormalFloat (NF4; Dettmers et al. 2023, QLoRA, section 3): levels at the quantiles of a normal distribution.

Blocks of 64 weights, each divided by its largest magnitude; what remains is rounded to the nearest of 16 fixed levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qlab.errors import UserError

BLOCK = 64
SUPERBLOCK = 256  # blocks whose absmax share one scale when they are quantized again (double quantization)


@dataclass(frozen=True)
class NormalFloat:
    """A quantized tensor: `codes` uint8 [blocks, 64] into `levels` float32 [16], one `absmax` float32 [blocks] each."""

    shape: tuple[int, int]
    codes: Tensor
    absmax: Tensor
    levels: Tensor

    def dequantize(self) -> Tensor:
        """float32 [out, in]."""
        return (self.levels[self.codes.int()] * self.absmax[:, None]).view(self.shape)

    @property
    def bits_per_weight(self) -> float:
        return stored_bits(double_quantization=False)


def stored_bits(double_quantization: bool) -> float:
    """Bits a weight: 4, and an FP32 absmax a block; doubled, 8 bits a block and an FP32 scale for 256 blocks."""
    return 4 + (8 / BLOCK + 32 / (BLOCK * SUPERBLOCK) if double_quantization else 32 / BLOCK)


def normal_levels(offset: float = 0.9677083) -> Tensor:
    """The 16 NF4 levels, float32 in −1 … 1: quantiles of N(0, 1), eight above zero, zero itself, seven below.

    `offset` is the outermost quantile; this one is QLoRA's (equation 4 and its appendix E).
    """
    above = torch.special.ndtri(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([below, torch.zeros(1, dtype=torch.float64), above]).sort().values
    return (levels / levels.max()).float()


def uniform_levels() -> Tensor:
    """The negative control: 16 evenly spaced levels, zero among them."""
    return torch.cat([torch.linspace(-1, 0, 8), torch.linspace(0, 1, 9)[1:]])


def nf4(weight: Tensor, levels: Tensor | None = None) -> NormalFloat:
    """Quantize a weight [out, in], whose size must be a multiple of 64, to the nearest of `levels` (NF4's by default).

    Raises:
        UserError: the weights cannot be cut into blocks of 64.
    """
    if weight.numel() % BLOCK:
        raise UserError(f"NF4 needs a multiple of {BLOCK} weights, not {weight.numel()}")
    levels = (normal_levels() if levels is None else levels).to(weight.device)
    blocks = weight.float().reshape(-1, BLOCK)
    absmax = blocks.abs().amax(-1)
    scaled = blocks / absmax.where(absmax > 0, torch.ones_like(absmax))[:, None]
    middles = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(scaled, middles).to(torch.uint8)
    return NormalFloat((weight.shape[0], weight.shape[1]), codes, absmax, levels)
