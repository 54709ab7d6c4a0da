"""GPTQ checkpoints whose layers differ by GPTQModel's `dynamic`: read as it says, refused where it contradicts the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlab.artifacts.converting import convert
from qlab.formats import gptq
from qlab.formats.dynamic import settings_of
from qlab.methods.rtn import rtn
from qlab.models.loading import load
from qlab.models.opening import OpenedModel, decoder_layers, locate
from qlab.support.errors import UserError
from tests.formats.checkpoints import logits, scattered

DYNAMIC: dict[str, Any] = {
    r"-:.*\.1\..*down_proj": {},
    r"+:.*\.0\.self_attn\.[qk]_proj": {"bits": 8, "group_size": 32},
    r".*gate_proj$": {"bits": 3, "desc_act": True},
    r".*\.0\.mlp": {"bits": 2, "group_size": 16, "sym": False},  # for the gate of block 0 it comes too late
}
CONFIG = gptq.quantization_config(4, 64, symmetric=True, act_order=False) | {"dynamic": DYNAMIC}


def kind(name: str) -> dict[str, Any] | None:
    """What each layer of the model of two blocks is to have, written down by hand."""
    block, layer = name.split(".")[2], name.rpartition(".")[2]
    if (block, layer) == ("1", "down_proj"):
        return None
    if block == "0" and layer in ("q_proj", "k_proj"):
        return {"bits": 8, "group_size": 32}
    if layer == "gate_proj":
        return {"bits": 3, "group_size": 64, "act_order": True}
    if block == "0" and layer in ("up_proj", "down_proj"):
        return {"bits": 2, "group_size": 16, "symmetric": False}
    return {"bits": 4, "group_size": 64}


def mixed(source: OpenedModel, out: Path, config: dict[str, Any]) -> tuple[Path, torch.nn.Module]:
    """The model of `source` quantized so, in the folder `out`; and the same model in plain weights."""
    state, dense = load_file(source.path / "model.safetensors"), load(source)
    for name, layer in decoder_layers(dense).items():
        if said := kind(name):
            tensor = rtn(state.pop(f"{name}.weight"), said["bits"], said["group_size"], symmetric=said.get("symmetric", True))
            tensor = scattered(tensor) if said.get("act_order") else tensor
            state |= {f"{name}.{role}": part for role, part in gptq.pack(tensor, 2).items()}
            layer.weight.data = tensor.dequantize()
    out.mkdir()
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(source.config | {"quantization_config": config | {"checkpoint_format": "gptq_v2"}}))
    return out, dense


def test_each_layer_is_read_in_the_width_and_groups_that_its_pattern_gives(tiny: OpenedModel, tmp_path: Path) -> None:
    folder, dense = mixed(tiny, tmp_path / "mixed", CONFIG)
    source = locate(str(folder))
    torch.testing.assert_close(logits(load(source)), logits(dense), rtol=1e-3, atol=1e-4)
    assert source.checkpoint.description == (
        "GPTQ, 4 bits in groups of 64, 8 bits in groups of 32, 3 bits in groups of 64, 2 bits in groups of 16"
    )
    with pytest.raises(UserError, match=r"has layers of other bits or groups than the rest \(dynamic\): convert changes between"):
        convert(source, "compressed-tensors", tmp_path / "converted")


def test_patterns_that_leave_layers_out_count_first_and_then_the_first_that_fits() -> None:
    said = {
        "bits": 4,
        "group_size": 64,
        "dynamic": {"a": {"bits": 8}, "a.b": {"bits": 2, "group_size": 32}, "-:a.c": None, "+:c": {"bits": 3}},
    }
    assert settings_of("a.b", said)["bits"] == 8
    assert settings_of("c.a", said)["bits"] == 3
    assert settings_of("b.a", said)["bits"] == 4  # a pattern fits from the beginning on
    with pytest.raises(UserError, match=r"a\.c is stored quantized, and '-:a\.c' in the configuration's dynamic leaves it out"):
        settings_of("a.c", said)


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({}, r"model\.layers\.\d\.[a-z_.]+ is stored in \d bits, and the configuration says 4: take the config.json .* dynamic"),
        (DYNAMIC | {".*o_proj": {"bits": 5}}, "the checkpoint is GPTQ gptq_v2 of 5 bits; qlab reads gptq, gptq_v2 of 2, 3, 4, 8 bits"),
        (DYNAMIC | {".*o_proj": {"bits": "4"}}, "the checkpoint is GPTQ gptq_v2 of 4 bits"),
        (
            DYNAMIC | {"-:.*o_proj": {}},
            r"self_attn\.o_proj is stored quantized, and '-:\.\*o_proj' in the configuration's dynamic leaves it",
        ),
        ({"+:(": {"bits": 8}}, r"the pattern '\(' in the quantization_config cannot be used"),
        ([".*o_proj"], "dynamic in the quantization_config is .*: expected patterns, and what each changes"),
        ({".*o_proj": 8}, "dynamic in the quantization_config is .*: expected patterns, and what each changes"),
    ],
)
def test_a_configuration_that_contradicts_the_files_is_refused(dynamic: Any, message: str, tiny: OpenedModel, tmp_path: Path) -> None:
    folder, _ = mixed(tiny, tmp_path / "mixed", CONFIG | {"dynamic": dynamic})
    with pytest.raises(UserError, match=message):
        locate(str(folder)).check_complete()
