"""The AWQ checkpoint format, GEMM version, as AutoAWQ writes it and vLLM and TGI read it.

qweight int32 [in, out/8], qzeros int32 [in/g, out/8], scales fp16 [in/g, out]; nibble i of a word holds column
[0, 2, 4, 6, 1, 3, 5, 7][i] of its eight; w = (q − z)·s, the zero point stored as it is.
"""

from __future__ import annotations

from torch import Tensor

from qlab.formats.packing import unpack_words
from qlab.methods.grid import GroupedIntegers

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def unpack(tensors: dict[str, Tensor]) -> GroupedIntegers:
    """Read one layer's stored tensors (qweight, qzeros, scales)."""
    return GroupedIntegers(
        codes=unpack_words(tensors["qweight"], ORDER).T.contiguous(),
        scales=tensors["scales"].float().T.contiguous(),
        zeros=unpack_words(tensors["qzeros"], ORDER).T.short().contiguous(),
        bits=4,
    )
