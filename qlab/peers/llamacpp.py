"""llama.cpp's own quantizer, from the library inside the xllamacpp wheel: the measure of qlab's K-quants."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from qlab.errors import UserError
from qlab.methods.kquant_kinds import KINDS


@cache
def library() -> ctypes.CDLL:
    """The wheel's library, ready to quantize.

    Raises:
        UserError: it is not installed, or its library does not offer the quantizer.
    """
    found = find_spec("xllamacpp")
    if found is None or found.origin is None:
        raise UserError("llama.cpp is not installed: pip install xllamacpp")
    (file,) = Path(found.origin).parent.glob("xllamacpp*.so")
    loaded = ctypes.CDLL(str(file))
    if not hasattr(loaded, "ggml_quantize_chunk"):
        raise UserError(f"{file.name} does not export ggml_quantize_chunk: install the xllamacpp that requirements.lock names")
    loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
    loaded.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return loaded


def encode_rows(tensor: Tensor, kind: str, importance: Tensor | None = None) -> Tensor:
    """The bytes of a matrix [out, in] in the format `kind`, uint8 [out, bytes a row], by ggml_quantize_chunk, on one thread.

    `importance` float32 [in]: llama.cpp's imatrix.

    Raises:
        UserError: llama.cpp is not here, or rows that the format's blocks do not divide.
    """
    rows, columns = tensor.shape
    layout = KINDS[kind]
    if columns % layout.block:
        raise UserError(f"{kind} needs rows of a multiple of {layout.block} weights, not {columns}")
    weights = tensor.float().cpu().contiguous()
    channels = None if importance is None else importance.float().cpu().contiguous()
    out = torch.empty(rows, columns // layout.block * layout.bytes, dtype=torch.uint8)
    pointer = None if channels is None else channels.data_ptr()
    written = library().ggml_quantize_chunk(GGMLQuantizationType[kind].value, weights.data_ptr(), out.data_ptr(), 0, rows, columns, pointer)
    assert written == out.numel(), f"{kind}: llama.cpp wrote {written} bytes, not {out.numel()}"
    return out
