"""The rest of a checkpoint's folder: config.json, tokenizer, chat template and generation settings beside the weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import torch

from qlab.formats.shards import Halves, assemble

COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "generation_config.json",
    "*processor_config.json",  # how a model that reads images wants them
)


def finish_folder(
    model: Path,
    config: dict[str, Any],
    parts: Sequence[Path],
    out: Path,
    quantization: dict[str, Any] | None,
    kept: Container[str] = (),
    dtype: torch.dtype = torch.float16,
    called: Callable[[str], str] = str,
) -> None:
    """Lay the companions of the folder `model` beside the joined parts; with `quantization`, write a config.json naming it and `dtype`,
    in which the tensors named in `kept` are stored. `called`: as in qlab.formats.shards.assemble.

    Raises:
        UserError: a value beyond the range of `dtype`.
    """
    for pattern in COMPANIONS:
        for file in model.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, out / file.name)
    if quantization is None:
        return
    assemble(parts, out, halves=Halves(kept, dtype), called=called)
    config = marked(config, str(dtype).removeprefix("torch.")) | {"quantization_config": quantization}
    if not {"dtype", "torch_dtype"} & config.keys():
        config["torch_dtype"] = str(dtype).removeprefix("torch.")
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if quantization["quant_method"] == "gptq":  # where AutoGPTQ's loader looks
        (out / "quantize_config.json").write_text(json.dumps(quantization, indent=2) + "\n")


def marked(config: dict[str, Any], kind: str) -> dict[str, Any]:
    """The configuration with `kind` wherever it names a dtype of weights, also in those of its parts."""
    marks = {name: kind for name in ("dtype", "torch_dtype") if name in config}
    return {name: marked(value, kind) if isinstance(value, dict) else value for name, value in config.items()} | marks
