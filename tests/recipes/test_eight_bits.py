"""W8A8 with stored scales of activations: what is stored is the largest of the calibration text, and the figures are of what it does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qlab.artifacts.artifact import Artifact, quantize_model
from qlab.evaluate.quality import measure_quality
from qlab.models.loading import load
from qlab.models.opening import OpenedModel, locate
from qlab.recipes import parse
from qlab.support.errors import UserError

DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def made(tiny: OpenedModel, calibration: Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    recipes = [parse(name) for name in ("rtn-w8a8", "rtn-w8a8-static", "smooth-rtn-w8a8-static")]
    return {artifact.path.name: artifact for artifact in quantize_model(tiny, recipes, calibration, tmp_path_factory.mktemp("static"))}


def test_the_scale_is_that_of_the_largest_activation(made: dict[str, Artifact], tiny: OpenedModel, calibration: Tensor) -> None:
    checkpoint, seen = made["rtn-w8a8-static"].source.checkpoint, list[Tensor]()
    model = load(tiny)
    hook = model.get_submodule(DOWN).register_forward_pre_hook(lambda _, given: seen.append(given[0].abs().max()))
    with torch.no_grad():
        model(input_ids=calibration)
    hook.remove()
    scale = checkpoint.input_scale(DOWN)
    assert scale is not None
    assert float(scale) == pytest.approx(float(max(seen)) / 127, rel=0.02)  # some CPUs multiply in BF16 in a walk
    joined = [checkpoint.input_scale(f"model.layers.0.self_attn.{part}_proj") for part in "qkv"]
    assert len({float(each) for each in joined if each is not None}) == 1
    smoothed = made["smooth-rtn-w8a8-static"].source.checkpoint.input_scale("model.layers.0.mlp.up_proj")
    plain = checkpoint.input_scale("model.layers.0.mlp.up_proj")
    assert smoothed is not None
    assert plain is not None
    assert float(smoothed) != float(plain)
    assert made["rtn-w8a8"].source.checkpoint.input_scale(DOWN) is None


def test_the_configuration_says_so_and_the_figures_are_of_it(made: dict[str, Artifact], tiny: OpenedModel, calibration: Tensor) -> None:
    config = made["rtn-w8a8-static"].source.config["quantization_config"]
    asked = config["config_groups"]["group_0"]["input_activations"]
    assert (asked["strategy"], asked["dynamic"], config["format"]) == ("tensor", False, "int-quantized")
    static, dynamic = (
        measure_quality(load(made[name].source), calibration, load(tiny)).kl or 0 for name in ("rtn-w8a8-static", "rtn-w8a8")
    )
    assert static > 1.2 * dynamic > 0  # one scale for all tokens is coarser than one for each


def test_a_scale_that_is_none_is_told(made: dict[str, Artifact], tmp_path: Path) -> None:
    folder = made["rtn-w8a8-static"].path
    tensors = load_file(folder / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for value, message in ((torch.zeros(1), "is no scale: expected one number above zero"), (torch.ones(2), "is no scale")):
        save_file(tensors | {f"{DOWN}.input_scale": value}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=message):
            load(locate(str(tmp_path)))
    save_file({name: each for name, each in tensors.items() if name != f"{DOWN}.input_scale"}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="scales that its files lack"):
        load(locate(str(tmp_path)))
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]


@pytest.mark.parametrize("name", ["rtn-w8a8-static", "smooth-rtn-w8a8-static", "gptq-w8a8-static", "smooth-gptq-w8a8-static"])
def test_names(name: str) -> None:
    assert parse(name).name == name
