"""AWQ and GPTQ checkpoints of mixtures of experts: each expert's matrix lies under the name, and in the bits, that other libraries read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from qlab.artifacts.artifact import Artifact, quantize_model
from qlab.models.loading import load
from qlab.models.opening import OpenedModel
from qlab.peers import autoawq, autogptq
from qlab.recipes import parse
from tests.formats.checkpoints import logits
from tests.walk.families import FAMILIES, make

RECIPES = ["awq-w4g32", "gptq-w4g32"]
PARTS = {  # of a list of experts, as files call it: a gate, an up and a down projection
    "mixtral": ("block_sparse_moe", ("w1", "w3", "w2")),
    "qwen3_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
}


@pytest.fixture(scope="module", params=list(PARTS))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def source(family: str, tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    return make(tmp_path_factory.mktemp("experts") / family, FAMILIES[family])


@pytest.fixture(scope="module")
def made(source: OpenedModel, calibration: Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    found = quantize_model(source, [parse(name) for name in RECIPES], calibration, tmp_path_factory.mktemp("made"))
    return {artifact.path.name: artifact for artifact in found}


def stored(folder: Path) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Tensors of a checkpoint that belong to no quantized layer, by name, and those that do, by their layers' names and their own."""
    plain, layers = load_file(folder / "model.safetensors"), dict[str, dict[str, Tensor]]()
    for layer in [name.removesuffix(".qweight") for name in plain if name.endswith(".qweight")]:
        own = [name for name in plain if name.rpartition(".")[0] == layer and not name.endswith(".bias")]
        layers[layer] = {name.rpartition(".")[2]: plain.pop(name) for name in own}
    return plain, layers


def entry_of(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact.path / "config.json").read_text())["quantization_config"]
    return found


def by_autoawq(tensors: dict[str, Tensor], entry: dict[str, Any]) -> Tensor:
    """The weight [out, in] that AutoAWQ unpacks."""
    from awq.utils.packing_utils import dequantize_gemm

    scales = tensors["scales"].float()  # in FP16 it would round what it unpacks
    found: Tensor = dequantize_gemm(tensors["qweight"], tensors["qzeros"], scales, entry["bits"], entry["group_size"])
    return found.T.contiguous()


def by_autogptq(tensors: dict[str, Tensor], entry: dict[str, Any]) -> Tensor:
    """The weight [out, in] that AutoGPTQ's layer multiplies by."""
    inputs, outputs = len(tensors["g_idx"]), tensors["scales"].shape[1]
    with autogptq.revived():
        from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear

        layer = QuantLinear(entry["bits"], entry["group_size"], inputs, outputs, bias=False)
    layer.load_state_dict(tensors)
    layer.scales = layer.scales.float()
    found: Tensor = layer(torch.eye(inputs)).T.contiguous()
    return found


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_names_are_those_of_the_familys_files(family: str, made: dict[str, Artifact], source: OpenedModel, recipe: str) -> None:
    plain, layers = stored(made[recipe].path)
    parent, parts = PARTS[family]
    attention = [f"self_attn.{part}_proj" for part in "qkvo"]
    experts = [f"{parent}.experts.{number}.{part}" for number in range(4) for part in parts]
    assert set(layers) == {f"model.layers.{index}.{name}" for index in range(2) for name in attention + experts}
    whole = load_file(source.folder / "model.safetensors")  # as transformers wrote it
    assert {*plain, *(f"{layer}.weight" for layer in layers)} == set(whole)
    assert f"model.layers.0.{parent}.gate.weight" in plain


@pytest.mark.parametrize("recipe", RECIPES)
def test_libraries_unpack_the_model_that_transformers_then_computes(made: dict[str, Artifact], recipe: str, tmp_path: Path) -> None:
    artifact, unpacked = made[recipe], {"awq-w4g32": by_autoawq, "gptq-w4g32": by_autogptq}[recipe]
    plain, layers = stored(artifact.path)
    weights = {f"{layer}.weight": unpacked(tensors, entry_of(artifact)) for layer, tensors in layers.items()}
    save_file({name: tensor.float() for name, tensor in (plain | weights).items()}, tmp_path / "model.safetensors", {"format": "pt"})
    config = {name: value for name, value in artifact.source.config.items() if name != "quantization_config"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model, told = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, experts_implementation="eager", output_loading_info=True
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    expected = logits(load(artifact.source))
    assert float((logits(model.eval()) - expected).norm() / expected.norm()) < 1e-5


def test_autoawq_leaves_the_routers_and_takes_all_the_rest(family: str, made: dict[str, Artifact]) -> None:
    with autoawq.imported():
        from awq.utils.module import exclude_layers_to_not_quantize
    artifact = made["awq-w4g32"]
    plain, layers = stored(artifact.path)
    matrices = [name.removesuffix(".weight") for name, tensor in plain.items() if tensor.ndim == 2 and "embed" not in name]
    assert f"model.layers.0.{PARTS[family][0]}.gate" in matrices
    taken = exclude_layers_to_not_quantize(dict.fromkeys([*matrices, *layers]), entry_of(artifact)["modules_to_not_convert"])
    assert set(taken) == set(layers)


def test_autogptqs_class_of_mixtral_quantizes_the_same_layers(made: dict[str, Artifact], family: str) -> None:
    if family != "mixtral":
        pytest.skip("AutoGPTQ has no class of this family")
    with autogptq.revived():
        from auto_gptq.modeling.mixtral import MixtralGPTQForCausalLM
    known = {name for names in MixtralGPTQForCausalLM.inside_layer_modules for name in names}
    known -= {name for name in known for number in range(4, 8) if f".{number}." in name}
    layers = stored(made["gptq-w4g32"].path)[1]
    assert {layer.removeprefix("model.layers.0.") for layer in layers if ".layers.0." in layer} == known
