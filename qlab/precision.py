"""Products of matrices in BF16, where the device has instructions for them; sums, norms and the residual stream stay in FP32.

What a layer adds is then off by 2⁻⁹ of itself at most: next to the error of 4 bits, and to what another text would change, nothing.
"""

from __future__ import annotations

import torch


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions that multiply matrices in BF16; others imitate them, which is slower than FP32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def quick_products(device: torch.device) -> torch.autocast:
    """A context in which layers multiply in BF16, if the device can."""
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bfloat16(device))
