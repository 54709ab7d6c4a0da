"""Round-to-nearest (RTN): every weight to the nearest point of its group's grid. The baseline of every paper."""

from __future__ import annotations

import torch
from torch import Tensor

from qlab.methods.grid import GroupedIntegers, fit_grid, grouped, round_to_grid


def rtn(weight: Tensor, bits: int, group_size: int = 128, symmetric: bool = False) -> GroupedIntegers:
    """Quantize `weight` [out, in] to `bits` (2–8) in groups along its rows.

    Raises:
        UserError: the group size does not divide the row length.
    """
    groups = grouped(weight.float(), group_size)
    scale, zero = fit_grid(groups, bits, symmetric)
    codes = round_to_grid(groups, scale, zero, bits)
    return GroupedIntegers(codes.to(torch.uint8).view(weight.shape), scale, zero.to(torch.int16), bits)
