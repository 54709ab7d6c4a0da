"""FP8 artifacts: their weights, what they do to activations, what they leave alone, and what they are planned to take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qlab.artifacts.artifact import fit, quantize_model
from qlab.artifacts.budget import predict
from qlab.methods.fp8 import Block, fp8, rounded_floats
from qlab.models.loading import load
from qlab.models.opening import OpenedModel
from qlab.plan.plan import weight_bytes
from qlab.plan.shapes import find_shape
from qlab.recipes import parse
from qlab.support.errors import UserError
from tests.walk.families import Family, make

LAYER = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize(("recipe", "block", "group"), [("rtn-fp8", None, None), ("rtn-fp8-b128", (128, 128), 128)])
def test_an_artifact_computes_as_its_runtime_will(
    tiny: OpenedModel, calibration: Tensor, recipe: str, block: Block | None, group: int | None, tmp_path: Path
) -> None:
    assert parse(recipe).name == recipe
    (artifact,) = quantize_model(tiny, [parse(recipe)], calibration, tmp_path)
    original, model = load(tiny), load(artifact.source)
    layer, exact = model.get_submodule(LAYER), original.get_submodule(LAYER)
    assert torch.equal(layer.weight, fp8(exact.weight, block).dequantize())  # type: ignore[arg-type]
    inputs = torch.randn(2, 5, 512, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(inputs), torch.nn.functional.linear(rounded_floats(inputs, group), layer.weight))  # type: ignore[arg-type, operator]
    assert artifact.manifest["notes"] == {}
    assert 0 < artifact.errors[LAYER] < 0.001  # a share of 1/16 at most, evenly spread: about 0.0007
    planned = weight_bytes(find_shape(str(tiny.path))[1], "FP8 W8A8")
    assert sum(file.stat().st_size for file in artifact.path.glob("*.safetensors")) == pytest.approx(planned, rel=0.05)


def test_layers_that_blocks_do_not_divide_stay_in_half_precision(calibration: Tensor, tmp_path: Path) -> None:
    source = make(tmp_path / "source", Family("llama", {"hidden_size": 128, "intermediate_size": 192}))
    (fitted,) = fit(source, [parse("rtn-fp8-b128")])
    assert "in half precision, since 192 outputs and 128 inputs are not both multiples of 128, the side of a block" in " ".join(
        fitted.remarks
    )
    (artifact,) = quantize_model(source, [parse("rtn-fp8-b128")], calibration, tmp_path / "out")
    quantized = {name.rpartition("self_attn.")[2] for name in artifact.source.checkpoint.quantized_names()}
    assert "o_proj.weight" in quantized
    assert not any("mlp" in name for name in quantized)
    ignored = artifact.source.config["quantization_config"]["ignore"]
    assert r"re:(.*\.)?mlp\.down_proj$" in ignored
    logits = load(artifact.source)(input_ids=calibration[:1, :16]).logits
    assert torch.isfinite(logits).all()
    with pytest.raises(UserError, match="without --strict"):
        fit(source, [parse("rtn-fp8-b128")], strict=True)


def test_its_budget_is_predicted(tiny: OpenedModel) -> None:
    assert predict(tiny, [parse("rtn-fp8")], (8, 64)).recipe > 4 * 512 * 256


@pytest.mark.parametrize("name", ["rtn-fp8-b64", "smooth-rtn-fp8", "gptq-fp8"])
def test_what_is_no_recipe_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="no recipe"):
        parse(name)
