"""Small whole checkpoints in the formats under test, and the same models in plain weights to hold them against."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from qlab.methods.grid import GroupedIntegers
from qlab.models.loading import load
from qlab.models.opening import OpenedModel, decoder_layers

Quantize = Callable[[torch.Tensor], GroupedIntegers]


def quantized(
    source: OpenedModel, out: Path, entry: dict[str, Any], quantize: Quantize, pack: Callable[..., dict[str, torch.Tensor]]
) -> Path:
    """The model of `source` with every decoder layer packed, in the folder `out`."""
    state, names = load_file(source.path / "model.safetensors"), decoder_layers(load(source))
    for name in names:
        packed = pack(quantize(state.pop(f"{name}.weight")))
        state |= {f"{name}.{kind}": tensor for kind, tensor in packed.items()}
    out.mkdir()
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(source.config | {"quantization_config": entry}))
    return out


def dense_model(source: OpenedModel, quantize: Quantize) -> PreTrainedModel:
    """The same model in plain weights, each replaced by what its codes stand for."""
    model = load(source)
    for layer in decoder_layers(model).values():
        layer.weight.data = quantize(layer.weight.data.half()).dequantize()
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(1, 33)[None]).logits.float()


def scattered(tensor: GroupedIntegers, seed: int = 2) -> GroupedIntegers:
    columns, groups = tensor.codes.shape[1], tensor.scales.shape[1]
    group_of = torch.randperm(columns, generator=torch.Generator().manual_seed(seed)) // (columns // groups)
    return GroupedIntegers(tensor.codes, tensor.scales, tensor.zeros, tensor.bits, group_of)
