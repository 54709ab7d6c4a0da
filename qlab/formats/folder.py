"""The rest of a checkpoint's folder: config.json, tokenizer, chat template and generation settings beside the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from qlab.formats.shards import assemble
from qlab.support.errors import UserError
from qlab.support.finite import all_finite

COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "generation_config.json",
)


def half_precision(name: str, tensor: Tensor, dtype: torch.dtype = torch.float16) -> Tensor:
    """Floating-point tensors in FP16, what runtimes of 4-bit checkpoints compute in, or in BF16.

    Raises:
        UserError: a value beyond its range.
    """
    if not tensor.is_floating_point():
        return tensor
    half = tensor.to(dtype)
    if not all_finite(half):
        kind = "BF16" if dtype == torch.bfloat16 else "FP16"
        raise UserError(f"{name} holds values up to {float(tensor.abs().max()):.3g}, beyond {kind}'s range, in which this format stores it")
    return half


def narrow(parts: Sequence[Path], kept: Container[str], dtype: torch.dtype) -> None:
    """Bring the floating-point tensors that are named in `kept` to half precision, in place, a part in memory at a time.

    Raises:
        UserError: a value beyond the range of `dtype`.
    """
    for part in parts:
        with safe_open(part, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dictionary
        halves = {name: half_precision(name, tensors[name], dtype) for name in tensors if name in kept}
        if any(half.dtype != tensors[name].dtype for name, half in halves.items()):
            save_file(tensors | halves, part.with_suffix(".new"))
            part.with_suffix(".new").replace(part)


def finish_folder(
    model: Path,
    config: dict[str, Any],
    parts: Sequence[Path],
    out: Path,
    quantization: dict[str, Any] | None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Lay the companions of the folder `model` beside the joined parts; with `quantization`, write a config.json naming it and `dtype`."""
    for pattern in COMPANIONS:
        for file in model.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, out / file.name)
    if quantization is None:
        return
    assemble(parts, out)
    config = config | {"quantization_config": quantization}
    kind = str(dtype).removeprefix("torch.")
    config |= {name: kind for name in ("dtype", "torch_dtype") if name in config} or {"torch_dtype": kind}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if quantization["quant_method"] == "gptq":  # where AutoGPTQ's loader looks
        (out / "quantize_config.json").write_text(json.dumps(quantization, indent=2) + "\n")
