"""Products of matrices in BF16, where the device has instructions for them.

Each operand is rounded to 8 significant bits, far finer than weights of 4; sums within a product, XᵀX and the residual stream stay
in FP32. Activations serve for statistics, which another text would change by more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions that multiply matrices in BF16; x86 without them imitates them, more slowly than FP32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def quick_products(device: torch.device, wanted: bool = True) -> torch.autocast:
    """A context in which layers multiply in BF16, if the device can and it is `wanted`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and multiplies_bfloat16(device))


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total` float32 [m, n] += `left` · `right` in place, sums in FP32; both are float32, or on CUDA both may be BF16.

    On CUDA, BF16 numbers are multiplied as they are, which is exact, and FP32 ones as TF32, rounded to 11 significant bits: that changes
    XᵀX by 1e-4 of its norm (`make bench-kernels` prints it), hundreds of times less than another text would.
    """
    if not total.is_cuda:
        total.addmm_(left, right)
    elif left.dtype == torch.bfloat16:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        with tf32():
            total.addmm_(left, right)


@contextmanager
def tf32() -> Iterator[None]:
    """A context in which CUDA multiplies FP32 matrices in TF32, where the GPU can."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before
