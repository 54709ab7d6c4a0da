"""Rounding as torch.round does it, for use within kernels."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def nearest(x):
    """The nearest whole number, halves to even, of what lies within a million.

    Beside 1.5 · 2²³ FP32 has whole numbers only: adding it rounds, and taking it off again changes nothing more.
    """
    return (tl.clamp(x, -1e6, 1e6) + 12582912.0) - 12582912.0
