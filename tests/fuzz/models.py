"""The models that cases damage: a tiny Llama in every format that qlab reads, each made once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from qlab.artifacts.artifact import quantize_model
from qlab.formats.packing import pack_words
from qlab.methods.rtn import rtn
from qlab.models.opening import OpenedModel, locate
from qlab.recipes import parse
from tests.conftest import tiny_folder
from tests.formats.gguf.writing import write_gguf
from tests.models.test_checkpoint import as_fp8


def artifact(recipe: str) -> Callable[[OpenedModel, Path], Any]:
    """A maker of the artifact of a recipe."""

    def make(source: OpenedModel, folder: Path) -> None:
        windows = torch.arange(1, 65).view(4, 16)
        (made,) = quantize_model(source, [parse(recipe)], windows, folder.parent / f"{folder.name}-out")
        made.path.rename(folder)

    return make


def as_gguf(source: OpenedModel, folder: Path) -> None:
    folder.mkdir()
    write_gguf(source.path, source.config, "q8_0", folder / "m.gguf")


def as_compressed(source: OpenedModel, folder: Path) -> None:
    """compressed-tensors, four bits in groups of 32, with zero points."""
    shutil.copytree(source.path, folder)
    state = load_file(folder / "model.safetensors")
    for name in source.layout.linear:
        layer, made = name.removesuffix(".weight"), rtn(state.pop(name).float(), 4, 32)
        state[f"{layer}.weight_packed"] = pack_words(made.codes.int(), 4)
        state[f"{layer}.weight_scale"] = made.scales.half()
        state[f"{layer}.weight_zero_point"] = pack_words(made.zeros.int().T, 4).T.contiguous()
        state[f"{layer}.weight_shape"] = torch.tensor(made.codes.shape)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}
    entry = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"g": {"targets": ["Linear"], "weights": weights}},
    }
    (folder / "config.json").write_text(json.dumps(source.config | {"quantization_config": entry}))


def as_mxfp4(source: OpenedModel, folder: Path) -> None:
    """A tiny GPT-OSS, its experts in MXFP4."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "vocab_size": 4096,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 16,
        "num_key_value_heads": 2,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_oss", **sizes)).half().save_pretrained(folder)
    for file in source.path.glob("*token*"):
        shutil.copy(file, folder)
    state = load_file(folder / "model.safetensors")
    for name in [name for name in state if name.endswith(("experts.down_proj", "experts.gate_up_proj"))]:
        experts, rows, columns = state.pop(name).transpose(1, 2).shape
        state[f"{name}_blocks"] = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
        state[f"{name}_scales"] = torch.full((experts, rows, columns // 32), 120, dtype=torch.uint8)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}}))


MAKERS: dict[str, Callable[[OpenedModel, Path], Any]] = {
    "plain": lambda source, folder: shutil.copytree(source.path, folder),
    "awq": artifact("awq-w4g32"),
    "gptq": artifact("gptq-w4g32"),
    "nf4": artifact("nf4"),
    "fp8": as_fp8,
    "compressed": as_compressed,
    "mxfp4": as_mxfp4,
    "gguf": as_gguf,
}


class Models:
    """Every model made once, where it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = locate(str(tiny_folder(root / "tiny")))

    def copy(self, name: str, to: Path) -> Path:
        """A fresh copy that a case may damage."""
        made = self.root / f"made-{name}"
        if not made.exists():
            MAKERS[name](self.source, made)
        return Path(shutil.copytree(made, to))
