"""From a stored AWQ, GPTQ or bitsandbytes checkpoint back to plain weights, whatever wrote it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from qlab.formats import awq, bitsandbytes, gptq
from qlab.formats.packing import WIDTHS
from qlab.methods.grid import GroupedIntegers
from qlab.methods.nf4 import NormalFloat
from qlab.support.errors import UserError

Reader = Callable[[dict[str, Tensor]], GroupedIntegers | NormalFloat]
PACKED = re.compile(r"(.+)\.(qweight|qzeros|scales|g_idx|weight\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+))")


def unpacker(quantization: dict[str, Any]) -> Reader:
    """The reader for a config.json's `quantization_config`.

    Raises:
        UserError: a method, width or version that qlab does not read.
    """
    method, bits = quantization.get("quant_method"), quantization.get("bits", 0)
    if method == "bitsandbytes" and quantization.get("load_in_4bit"):
        return bitsandbytes.unpack
    layout = quantization.get("version", "gemm") if method == "awq" else quantization.get("checkpoint_format", "gptq")
    readers: dict[tuple[Any, str], tuple[tuple[int, ...], Reader]] = {
        ("awq", "gemm"): ((awq.BITS,), awq.unpack),
        ("gptq", "gptq"): (WIDTHS, lambda tensors: gptq.unpack(tensors, 1, bits)),
        ("gptq", "gptq_v2"): (WIDTHS, lambda tensors: gptq.unpack(tensors, 2, bits)),
    }
    if (method, str(layout).lower()) not in readers:
        raise UserError(f"qlab reads AWQ (gemm), GPTQ (gptq, gptq_v2) and 4-bit bitsandbytes checkpoints, not {method} {layout}")
    widths, reader = readers[method, str(layout).lower()]
    if bits not in widths:
        readable = ", ".join(map(str, widths))
        raise UserError(f"the checkpoint is quantized to {bits} bits; qlab reads {method} checkpoints of {readable} bits")
    return reader


def dense_state(folder: Path, quantization: dict[str, Any]) -> dict[str, Tensor]:
    """All weights of the checkpoint in `folder` under their unquantized names; quantized ones in float32."""
    unpack = unpacker(quantization)
    dense: dict[str, Tensor] = {}
    packed: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            if match := PACKED.fullmatch(name):
                packed[match[1]][match[2]] = tensor
            else:
                dense[name] = tensor
    for layer in list(packed):
        stored = packed.pop(layer)
        if "weight.absmax" in stored:  # bitsandbytes keeps the codes under the weight's own name
            stored["weight"] = dense.pop(f"{layer}.weight")
        dense[f"{layer}.weight"] = unpack(stored).dequantize()
    return dense
