"""4-bit NormalFloat (NF4; Dettmers et al. 2023, QLoRA, section 3): levels at the quantiles of a normal distribution.

Blocks of 64 weights, each divided by its largest magnitude; what remains is rounded to the nearest of 16 fixed levels.
FP4, a 4-bit floating-point number, is the same with other levels. The arithmetic follows bitsandbytes' on the CPU step by
step, so that codes and scales come out equal to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from qlab.support.errors import UserError

BLOCK = 64
SUPERBLOCK = 256  # blocks whose absmax share one scale when they are quantized again (double quantization)
KINDS = ("nf4", "fp4")
TINY = 1e-38  # what an absmax of zero is taken for when it divides
CHUNK = 1 << 16  # blocks rounded at once: 4 M weights, whatever the size of the layer


@dataclass(frozen=True)
class NestedAbsmax:
    """The absmax of all blocks, quantized again: `codes` uint8 [blocks] into the dynamic map, `absmax` float32
    [superblocks], and `offset` float32 [], the mean that was taken off first."""

    codes: Tensor
    absmax: Tensor
    offset: Tensor

    def dequantize(self) -> Tensor:
        """float32 [blocks]."""
        scale = self.absmax.repeat_interleave(SUPERBLOCK)[: len(self.codes)]
        return dynamic_map().to(self.codes.device)[self.codes.int()] * scale + self.offset


@dataclass(frozen=True)
class NormalFloat:
    """A quantized tensor: `codes` uint8 [out·in] into `levels` float32 [16], and `absmax` float32 [blocks].

    Doubly quantized, `absmax` is what `nested` decodes to, and only `nested` is stored. `dtype` is the weight's own, which
    runtimes decode into; `kind` names the levels: nf4, fp4, or "" for others, which no format stores.
    """

    shape: tuple[int, int]
    codes: Tensor
    absmax: Tensor
    levels: Tensor
    nested: NestedAbsmax | None = None
    kind: str = "nf4"
    dtype: torch.dtype = torch.float16

    def dequantize(self) -> Tensor:
        """float32 [out, in]."""
        scale = self.absmax.repeat_interleave(BLOCK)[: len(self.codes)]
        return (self.levels[self.codes.int()] * scale).view(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits a weight: the codes and the scales; not the maps (64 bytes a layer, and 1 KiB if doubled)."""
        scales = 32 * len(self.absmax) if self.nested is None else 8 * len(self.absmax) + 32 * len(self.nested.absmax)
        return 4 + scales / len(self.codes)


def stored_bits(double_quantization: bool) -> float:
    """Bits a weight: 4, and an FP32 absmax a block; doubled, 8 bits a block and an FP32 scale for 256 blocks."""
    return 4 + (8 / BLOCK + 32 / (BLOCK * SUPERBLOCK) if double_quantization else 32 / BLOCK)


def nf4(weight: Tensor, levels: Tensor | None = None, kind: str = "nf4", double: bool = False) -> NormalFloat:
    """Quantize a weight [out, in] to the nearest of `levels`, by default those of `kind`, nf4 or fp4.

    `double` quantizes the absmax of the blocks again. The last block is shorter where 64 does not divide the size.

    Raises:
        UserError: a kind that is neither, or a weight that is no matrix.
    """
    if kind not in KINDS:
        raise UserError(f"there is no 4-bit kind {kind!r}: choose {' or '.join(KINDS)}")
    if weight.ndim != 2 or not weight.numel():
        raise UserError(f"a weight of shape {tuple(weight.shape)} cannot be quantized: expected a matrix [out, in]")
    if levels is not None:
        kind = ""
    elif kind == "nf4":
        levels = normal_levels()
    else:
        levels = float_levels()
    levels = levels.to(weight.device)
    codes, absmax = encode(weight.flatten(), levels)
    nested = nest(absmax) if double else None
    absmax = absmax if nested is None else nested.dequantize()
    return NormalFloat((weight.shape[0], weight.shape[1]), codes, absmax, levels, nested, kind, weight.dtype)


def encode(weights: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Codes uint8 [n] and absmax float32 [blocks] of weights [n]."""
    whole = len(weights) // BLOCK * BLOCK
    parts = []
    for blocks in weights[:whole].view(-1, BLOCK).split(CHUNK):
        blocks = blocks.float()
        absmax = blocks.abs().amax(-1)
        parts.append((nearest(blocks * (1 / absmax.clamp(min=TINY))[:, None], levels).flatten(), absmax))
    if whole < len(weights):
        # Here bitsandbytes divides, where above it multiplies by the reciprocal: the last bit can differ.
        last = weights[whole:].float()
        absmax = last.abs().amax().clamp(min=TINY)
        parts.append((nearest(last / absmax, levels), absmax[None]))
    return torch.cat([codes for codes, _ in parts]), torch.cat([absmax for _, absmax in parts])


def nearest(values: Tensor, levels: Tensor) -> Tensor:
    """The index of the level nearest to each value in −1 … 1, uint8; of two equally near, the lower level."""
    order = levels.argsort(stable=True)
    ascending = levels[order]
    places = torch.bucketize(values, (ascending[1:] + ascending[:-1]) / 2, out_int32=True)
    return order.to(torch.uint8)[places]


def nest(absmax: Tensor) -> NestedAbsmax:
    """Double quantization (QLoRA, section 3): absmax float32 [blocks], less their mean, in 8 bits with a scale for 256."""
    offset = absmax.mean()
    blocks = pad(absmax - offset, (0, -len(absmax) % SUPERBLOCK)).view(-1, SUPERBLOCK)
    reach = blocks.abs().amax(-1)
    scaled = (blocks * (1 / reach.where(reach > 0, torch.ones_like(reach)))[:, None]).clamp(-1, 1)
    # bitsandbytes' CPU kernel looks the code up in a table of 65,536 values; its CUDA kernel rounds the value itself, and
    # its code is the neighbour of this one where the value lies within 1/65,535 of a boundary.
    scaled = ((scaled + 1) * 0.5 * 65535 + 0.5).int() * (2 / 65535) - 1
    codes = nearest(scaled, dynamic_map().to(absmax.device))
    codes[reach == 0] = 0  # any code decodes a superblock of equal absmax; this is the library's
    return NestedAbsmax(codes.flatten()[: len(absmax)], reach, offset)


def normal_levels(offset: float = 0.9677083) -> Tensor:
    """The 16 NF4 levels, float32 in −1 … 1: quantiles of N(0, 1), eight above zero, zero itself, seven below.

    `offset` is the outermost quantile; this one is QLoRA's (equation 4 and its appendix E). Probabilities and quantiles are
    rounded to float32 where bitsandbytes' generator (create_normal_map) does, which makes the levels equal to its table.
    """
    above = torch.special.ndtri(torch.linspace(offset, 0.5, 9)[:-1].double())
    below = -torch.special.ndtri(torch.linspace(offset, 0.5, 8)[:-1].double())
    levels = torch.cat([below, torch.zeros(1, dtype=torch.float64), above]).sort().values.float()
    return levels / levels.max()


def float_levels() -> Tensor:
    """The 16 FP4 levels in the order of their codes, float32 in −1 … 1: a sign, two bits of exponent, one of mantissa.

    Codes 0 and 8 are both zero; the exponents run 1, 2, 3, 0 as bitsandbytes numbers them (get_4bit_type).
    """
    magnitudes = torch.tensor([0, 0.0625, 8, 12, 4, 6, 2, 3])
    return torch.cat([magnitudes, 0 - magnitudes]) / 12


def uniform_levels() -> Tensor:
    """The negative control: 16 evenly spaced levels, zero among them."""
    return torch.cat([torch.linspace(-1, 0, 8), torch.linspace(0, 1, 9)[1:]])


def dynamic_map() -> Tensor:
    """The 256 levels of the dynamic 8-bit type, float32 ascending (Dettmers 2015, arXiv 1511.04561; create_dynamic_map).

    Seven decades up to 1, each cut into twice as many steps as the one below it; either sign; zero; and 1 itself.
    """
    decades = []
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1)
        decades.append(10.0 ** (decade - 6) * (edges[:-1] + edges[1:]) / 2)
    positive = torch.cat(decades)
    return torch.cat([-positive, torch.tensor([0.0, 1.0]), positive]).sort().values
