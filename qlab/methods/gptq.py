"""GPTQ (Frantar et al. 2022): round the input columns one after another, each error spread over the columns still to come.

The least-squares answer to "column j was rounded, what should the others do?" needs the inverse Hessian of the layer's
inputs only; its Cholesky factor holds, row by row, what each step of that elimination needs (the paper's algorithm 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlab.methods.grid import GroupedIntegers, column_groups, fit_grid, grouped, round_to_grid


def gptq(
    weight: Tensor,
    hessian: Tensor,
    bits: int,
    group_size: int = 128,
    symmetric: bool = False,
    act_order: bool = False,
    damping: float = 0.01,
    compensate: bool = True,
) -> GroupedIntegers:
    """Quantize `weight` [out, in] against H = XᵀX `hessian` [in, in].

    `act_order` takes columns by falling diagonal of H, on grids fixed beforehand from the original groups (static
    groups), so that no g_idx is needed. `compensate=False` is the negative control: the same walk, errors thrown away.
    """
    weight, hessian = weight.float().clone(), hessian.float().clone()
    columns = weight.shape[1]
    size = columns if group_size == -1 else group_size
    scale, zero = fit_grid(grouped(weight, group_size), bits, symmetric)
    group_of = column_groups(columns, columns // size)

    dead = hessian.diagonal() == 0  # channels that no token ever used: any code serves, zero is cheapest
    hessian.diagonal()[dead] = 1
    weight[:, dead] = 0
    hessian.diagonal().add_(damping * hessian.diagonal().mean())  # λ in section 3.3, step 3
    order = torch.argsort(hessian.diagonal(), descending=True) if act_order else torch.arange(columns, device=weight.device)

    # U in the paper: upper Cholesky factor of H⁻¹; row j holds what column j's elimination does to the later ones.
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order])), upper=True)
    work = weight[:, order]
    codes = torch.empty_like(work)
    for first in range(0, columns, 128):  # B = 128: lazy batch updates, section 3.3 step 2
        last = min(first + 128, columns)
        errors = torch.zeros_like(work[:, first:last])
        for j in range(first, last):
            group = group_of[order[j]]
            if not act_order and compensate and j % size == 0:  # the grid of a group sees the errors spread so far
                scale[:, group], zero[:, group] = fit_grid(work[:, j : j + size], bits, symmetric)
            codes[:, j] = round_to_grid(work[:, j, None], scale[:, group], zero[:, group], bits)[:, 0]
            if compensate:
                rounded = (codes[:, j] - zero[:, group]) * scale[:, group]
                errors[:, j - first] = (work[:, j] - rounded) / factor[j, j]
                work[:, j:last] -= errors[:, j - first, None] * factor[j, j:last]
        work[:, last:] -= errors @ factor[first:last, last:]
    restored = torch.empty_like(codes)
    restored[:, order] = codes
    return GroupedIntegers(restored.to(torch.uint8), scale, zero.to(torch.int16), bits)
