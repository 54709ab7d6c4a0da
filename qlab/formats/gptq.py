"""The GPTQ checkpoint format (v1 and v2), as AutoGPTQ writes it and vLLM and TGI read it.

qweight int32 [in/8, out], qzeros int32 [in/g, out/8], scales fp16 [in/g, out], g_idx int32 [in]. Version 1 stores the
zero point less one, version 2 as it is.
"""

from __future__ import annotations

from torch import Tensor

from qlab.formats.packing import unpack_words
from qlab.methods.grid import GroupedIntegers


def unpack(tensors: dict[str, Tensor], version: int = 1) -> GroupedIntegers:
    """Read one layer's stored tensors (qweight, qzeros, scales, g_idx)."""
    stored = unpack_words(tensors["qzeros"]).T.short()
    return GroupedIntegers(
        codes=unpack_words(tensors["qweight"].T.contiguous()).contiguous(),
        scales=tensors["scales"].float().T.contiguous(),
        zeros=((stored + 1) % 16 if version == 1 else stored).contiguous(),
        bits=4,
        group_of=tensors["g_idx"].long(),
    )
