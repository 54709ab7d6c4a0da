"""From a stored AWQ or GPTQ checkpoint back to plain weights, whatever wrote it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from qlab.errors import UserError
from qlab.formats import awq, gptq
from qlab.methods.grid import GroupedIntegers

PACKED = ("qweight", "qzeros", "scales", "g_idx")


def unpacker(quantization: dict[str, Any]) -> Callable[[dict[str, Tensor]], GroupedIntegers]:
    """The reader for a config.json's `quantization_config`.

    Raises:
        UserError: a method, width or version that qlab does not read.
    """
    method, bits = quantization.get("quant_method"), quantization.get("bits")
    if bits != 4:
        raise UserError(f"the checkpoint is quantized to {bits} bits; qlab reads AWQ and GPTQ checkpoints of 4 bits")
    if method == "awq" and str(quantization.get("version", "gemm")).lower() == "gemm":
        return awq.unpack
    if method == "gptq" and quantization.get("checkpoint_format", "gptq") in ("gptq", "gptq_v2"):
        version = 2 if quantization.get("checkpoint_format") == "gptq_v2" else 1
        return lambda tensors: gptq.unpack(tensors, version)
    raise UserError(f"qlab reads AWQ (gemm) and GPTQ (gptq, gptq_v2) checkpoints, not {method} {quantization.get('version', '')}".rstrip())


def dense_state(folder: Path, quantization: dict[str, Any]) -> dict[str, Tensor]:
    """All weights of the checkpoint in `folder` under their unquantized names; quantized ones in float32."""
    unpack = unpacker(quantization)
    dense: dict[str, Tensor] = {}
    packed: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            layer, _, kind = name.rpartition(".")
            if kind in PACKED:
                packed[layer][kind] = tensor
            else:
                dense[name] = tensor
    for layer, tensors in packed.items():
        dense[f"{layer}.weight"] = unpack(tensors).dequantize()
    return dense
