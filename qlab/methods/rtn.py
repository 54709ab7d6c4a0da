"""Round-to-nearest (RTN): every weight to the nearest point of its group's grid. The baseline of every paper."""

from __future__ import annotations

import torch
from torch import Tensor

from qlab.methods.grid import GroupedIntegers, fit_grid, grouped, round_to_grid
from qlab.methods.grid_search import diagonal_blocks, refit_scales, search_grid


def rtn(
    weight: Tensor, bits: int, group_size: int = 128, symmetric: bool = False, hessian: Tensor | None = None, note: str = ""
) -> GroupedIntegers:
    """Quantize `weight` [out, in] to `bits` (2–8) in groups along its rows.

    With H = XᵀX, `hessian` [in, in], each grid is searched for the least error of the output, and the scales of a row are
    fitted together; without, a grid covers its group.

    Raises:
        UserError: the group size does not divide the row length.
    """
    groups = grouped(weight.float(), group_size)
    if hessian is None:
        scale, zero = fit_grid(groups, bits, symmetric)
    else:
        scale, zero = search_grid(groups, bits, symmetric, diagonal_blocks(hessian, groups.shape[-1]))
    codes = round_to_grid(groups, scale, zero, bits).to(torch.uint8).view(weight.shape)
    layer = GroupedIntegers(codes, scale, zero.to(torch.int16), bits, note=note)
    return layer if hessian is None else refit_scales(layer, weight, hessian)
