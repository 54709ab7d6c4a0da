"""Half precision: what tensors that are not quantized are stored in."""

from __future__ import annotations

import torch
from torch import Tensor

from qlab.support.errors import UserError
from qlab.support.finite import all_finite


def half_precision(name: str, tensor: Tensor, dtype: torch.dtype = torch.float16) -> Tensor:
    """Floating-point tensors in FP16, what runtimes of 4-bit checkpoints compute in, or in BF16.

    Raises:
        UserError: a value beyond its range.
    """
    if not tensor.is_floating_point():
        return tensor
    half = tensor.to(dtype)
    if not all_finite(half):
        kind = "BF16" if dtype == torch.bfloat16 else "FP16"
        raise UserError(f"{name} holds values up to {float(tensor.abs().max()):.3g}, beyond {kind}'s range, in which this format stores it")
    return half
