"""llama.cpp's own quantizer, from the library inside the xllamacpp wheel: the measure of qlab's K-quants."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from qlab.methods.kquants.blocks import channel_weights, check_range, layout_of
from qlab.support.errors import UserError


@cache
def library() -> ctypes.CDLL:
    """The wheel's library, ready to quantize.

    Raises:
        UserError: it is not installed, or its library does not offer the quantizer.
    """
    found = find_spec("xllamacpp")
    if found is None or found.origin is None:
        raise UserError("llama.cpp is not installed: pip install xllamacpp")
    files = list(Path(found.origin).parent.glob("xllamacpp*.so"))
    loaded = ctypes.CDLL(str(files[0])) if len(files) == 1 else None
    if loaded is None or not hasattr(loaded, "ggml_quantize_chunk"):
        raise UserError("this xllamacpp does not export ggml_quantize_chunk: install the release that requirements.lock names")
    loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
    loaded.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return loaded


def encode_rows(tensor: Tensor, kind: str, importance: Tensor | None = None) -> Tensor:
    """The bytes of a matrix [out, in] in the format `kind`, uint8 [out, bytes a row], by ggml_quantize_chunk, on one thread.

    `importance` float32 [in]: llama.cpp's imatrix.

    Raises:
        UserError: llama.cpp is not here, or what qlab's own encoder refuses: see qlab.methods.kquants.blocks.encode.
    """
    layout = layout_of(tensor, kind)
    rows, columns = tensor.shape
    weights = tensor.cpu().float().contiguous()
    check_range(weights)
    if importance is not None:
        channel_weights(importance, columns, layout.size)  # raises where it is no importance
    channels = None if importance is None else importance.float().cpu().contiguous()
    out = torch.empty(rows, columns // layout.block * layout.bytes, dtype=torch.uint8)
    pointer = None if channels is None else channels.data_ptr()
    written = library().ggml_quantize_chunk(GGMLQuantizationType[kind].value, weights.data_ptr(), out.data_ptr(), 0, rows, columns, pointer)
    if written != out.numel():
        raise UserError(f"{kind}: llama.cpp wrote {written} bytes, not {out.numel()}")
    return out
