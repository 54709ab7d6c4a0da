"""Products of matrices in BF16, where the device has instructions for them.

Each operand is rounded to 8 significant bits, far finer than weights of 4; sums within a product, XᵀX and the residual stream stay
in FP32. Activations serve for statistics, which another text would change by more.
"""

from __future__ import annotations

import torch


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions that multiply matrices in BF16; x86 without them imitates them, more slowly than FP32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def quick_products(device: torch.device, wanted: bool = True) -> torch.autocast:
    """A context in which layers multiply in BF16, if the device can and it is `wanted`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and multiplies_bfloat16(device))
