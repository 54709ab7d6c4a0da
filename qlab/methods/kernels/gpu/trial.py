"""The smallest kernel, to find out whether kernels can be compiled and started on this machine."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def compile_and_run(device: torch.device) -> None:
    """Raise whatever Triton raises, if it cannot."""
    with torch.cuda.device(device):
        _fill[(1,)](torch.empty(1, device=device))
        torch.cuda.synchronize()


@triton.jit
def _fill(number):
    tl.store(number, 1.0)
