"""Grouped integers: codes on an integer grid, with a scale and a zero point a group of weights.

The representation that round-to-nearest, AWQ and GPTQ share: w ≈ (q − z) · s, where q, z and s are the code, the zero
point and the scale of the group that the weight belongs to. Groups run along the input dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from qlab.methods.kquants.codebook import Codebook
from qlab.support.errors import UserError

SCALE_BITS = 16  # scales are stored in FP16 by every format of this family
SMALLEST_SCALE = 6e-8  # FP16's smallest number above zero


class Points(NamedTuple):
    """What codes 0 … `levels` of each group stand for: `offset` + code · `step`, both float32 [out, groups]; with a `book`, its value in
    place of the code."""

    step: Tensor
    offset: Tensor
    levels: int
    book: Codebook | None = None


@dataclass(frozen=True)
class GroupedIntegers:
    """A quantized tensor: `codes` uint8 [out, in], `scales` float32 and `zeros` int16, both [out, groups].

    `group_of` int64 [in] names each input column's group where activation ordering scattered them (GPTQ's g_idx);
    None means consecutive columns. `note` says what did not go as asked, and is empty where all did.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    bits: int
    group_of: Tensor | None = None
    note: str = ""

    def dequantize(self) -> Tensor:
        """The weights that these codes stand for: float32 [out, in]."""
        if self.group_of is not None:
            groups = self.group_of.to(self.codes.device)
            return (self.codes.float() - self.zeros[:, groups]) * self.scales[:, groups]
        weights = self.codes.float().view(*self.scales.shape, -1)
        return weights.sub_(self.zeros[..., None]).mul_(self.scales[..., None]).view(self.codes.shape)

    @property
    def points(self) -> Points:
        """The values that the codes may stand for."""
        return Points(self.scales, -self.zeros * self.scales, int(2**self.bits - 1))

    def rows(self, sizes: Sequence[int]) -> list[GroupedIntegers]:
        """Cut into tensors of so many rows each."""
        parts = zip(self.codes.split(sizes), self.scales.split(sizes), self.zeros.split(sizes))
        return [replace(self, codes=codes, scales=scales, zeros=zeros) for codes, scales, zeros in parts]

    @property
    def bits_per_weight(self) -> float:
        """Stored bits a weight: the codes, and a scale and a zero point a group."""
        return self.bits + (SCALE_BITS + self.bits) * self.scales.numel() / self.codes.numel()


def column_groups(columns: int, groups: int) -> Tensor:
    """The group of each input column when groups are consecutive: int64 [columns]."""
    return torch.arange(columns) // (columns // groups)


def grouped(weight: Tensor, group_size: int) -> Tensor:
    """View a weight [out, in] as [out, groups, group_size]; a group size of −1 means the whole row.

    Raises:
        UserError: the row length is no multiple of the group size.
    """
    rows, columns = weight.shape
    size = columns if group_size == -1 else group_size
    if size < 1 or columns % size:
        raise UserError(f"a row of {columns} weights cannot be cut into groups of {size}: choose a divisor of {columns}, or -1")
    return weight.reshape(rows, columns // size, size)


def fit_grid(groups: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point that just cover each group: [..., group_size] → two tensors [...].

    Symmetric: zero point 2^(bits−1), scale from the largest magnitude. Asymmetric: from minimum to maximum, both widened
    to include zero, so that a weight of zero stays zero; the zero point is at least 1, which the GPTQ format can store.
    """
    levels = 2**bits - 1
    if symmetric:
        reach = groups.abs().amax(-1)
        scale = 2 * reach / levels
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        high = groups.amax(-1).clamp(min=0)
        low = torch.minimum(groups.amin(-1), -high / (levels - 1))
        scale = (high - low) / levels
        zero = torch.round(-low / scale.where(scale > 0, torch.ones_like(scale))).clamp(1, levels)
    # A group of zeros has no extent: any scale serves, and 1 keeps the division finite.
    scale = scale.where(scale > 0, torch.ones_like(scale))
    return storable(scale), zero


def storable(scale: Tensor) -> Tensor:
    """Scales as FP16 holds them, in float32: rounded, never zero, each with its sign."""
    return torch.copysign(scale.half().float().abs_().clamp_(min=SMALLEST_SCALE), scale)


def round_to_grid(groups: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Nearest codes, 0 … 2^bits − 1, of weights [..., group_size] on the grids [...]."""
    return torch.div(groups, scale.unsqueeze(-1)).round_().add_(zero.unsqueeze(-1)).clamp_(0, 2**bits - 1)


def nearest_values(weight: Tensor, bits: int, group_size: int, symmetric: bool) -> Tensor:
    """`weight` float32 [out, in] as round-to-nearest leaves it, had without its codes; raises as `grouped` does."""
    groups = grouped(weight, group_size)
    scale, zero = fit_grid(groups, bits, symmetric)
    whole = round_to_grid(groups, scale, zero, bits).sub_(zero.unsqueeze(-1))
    return whole.mul_(scale.unsqueeze(-1)).view(weight.shape)


def rows_at_once(matrix: Tensor) -> int:
    """Rows to compute with at a time: on a CPU as many as stay in its cache, on a GPU enough to keep it busy."""
    return max(1, (1 << 18 if matrix.device.type == "cpu" else 1 << 25) // matrix[0].numel())
