"""The rest of a checkpoint's folder: config.json, tokenizer, chat template and generation settings beside the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def half_precision(name: str, tensor: Tensor) -> Tensor:
    """Floating-point tensors in FP16, what runtimes of 4-bit checkpoints compute in.

    Raises:
        UserError: a value beyond FP16's range.
    """
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if not all_finite(half):
        raise UserError(f"{name} holds values up to {float(tensor.abs().max()):.3g}, beyond FP16's range, in which this format stores it")
    return half


def finish_folder(model: Path, config: dict[str, Any], parts: Sequence[Path], out: Path, quantization: dict[str, Any] | None) -> None:
    """Lay the companions of the folder `model` beside the joined parts; with `quantization`, write a config.json that names it."""
    for pattern in COMPANIONS:
        for file in model.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, out / file.name)
    if quantization is None:
        return
    assemble(parts, out)
    config = config | {"quantization_config": quantization}
    config |= {name: "float16" for name in ("dtype", "torch_dtype") if name in config} or {"torch_dtype": "float16"}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if quantization["quant_method"] == "gptq":  # where AutoGPTQ's loader looks
        (out / "quantize_config.json").write_text(json.dumps(quantization, indent=2) + "\n")
