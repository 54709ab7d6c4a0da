"""Grouped integers: codes on an integer grid, with a scale and a zero point a group of weights.

The representation that round-to-nearest, AWQ and GPTQ share: w ≈ (q − z) · s, where q, z and s are the code, the zero
point and the scale of the group that the weight belongs to. Groups run along the input dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qlab.errors import UserError

SCALE_BITS = 16  # scales are stored in FP16 by every format of this family


@dataclass(frozen=True)
class GroupedIntegers:
    """A quantized tensor: `codes` uint8 [out, in], `scales` float32 and `zeros` int16, both [out, groups].

    `group_of` int64 [in] names each input column's group where activation ordering scattered them (GPTQ's g_idx);
    None means consecutive columns.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    bits: int
    group_of: Tensor | None = None

    def dequantize(self) -> Tensor:
        """The weights that these codes stand for: float32 [out, in]."""
        groups = (column_groups(self.codes.shape[1], self.scales.shape[1]) if self.group_of is None else self.group_of).to(
            self.codes.device
        )
        return (self.codes.float() - self.zeros[:, groups]) * self.scales[:, groups]

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

    Symmetric: zero point 2^(bits−1), scale from the largest magnitude. Asymmetric: from minimum to maximum, both
    widened to include zero, so that a weight of zero stays zero.
    """
    levels = 2**bits - 1
    if symmetric:
        reach = groups.abs().amax(-1)
        scale = 2 * reach / levels
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scale = (high - low) / levels
        zero = torch.round(-low / scale.where(scale > 0, torch.ones_like(scale))).clamp(0, levels)
    # A group of zeros has no extent: any scale serves, and 1 keeps the division finite.
    scale = scale.where(scale > 0, torch.ones_like(scale))
    return scale.half().float().clamp(min=6e-8), zero


def round_to_grid(groups: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Nearest codes, 0 … 2^bits − 1, of weights [..., group_size] on the grids [...]."""
    return torch.clamp(torch.round(groups / scale.unsqueeze(-1)) + zero.unsqueeze(-1), 0, 2**bits - 1)
