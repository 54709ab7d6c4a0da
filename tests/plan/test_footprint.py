"""What an artifact will hold, told from its headers, against what lies in the files and what PyTorch holds of it."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, PretrainedConfig

from qlab.artifacts.artifact import make_artifact
from qlab.models.loading import load
from qlab.models.opening import OpenedModel
from qlab.plan.capacity import q4_k_bytes
from qlab.plan.footprint import footprint
from qlab.plan.plan import shape_of
from qlab.recipes import parse
from qlab.support.memory import disk_bytes


def test_a_dense_model_takes_its_parameters_in_the_dtype_it_computes_in(tiny: OpenedModel) -> None:
    model = load(tiny)
    found = footprint(tiny.path, 100, float_bytes=4)
    assert found.weights == 4 * model.num_parameters()
    assert found.step == found.weights  # embedding and head are one matrix, read whole
    config = model.config
    assert found.cache == 4 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert found.total == found.weights + 100 * found.cache


def test_an_untied_embedding_is_not_read(tiny: OpenedModel, tmp_path: Path) -> None:
    model = load(tiny)
    untied = type(model)(type(model.config).from_dict(model.config.to_dict() | {"tie_word_embeddings": False}))
    untied.half().save_pretrained(tmp_path)
    found = footprint(tmp_path, 1)
    assert found.weights == 2 * untied.num_parameters()
    assert found.weights - found.step == 2 * untied.get_input_embeddings().weight.numel()


@pytest.mark.parametrize("family", [LlamaConfig, Phi3Config])
def test_the_largest_layer_is_that_of_the_model(family: type[PretrainedConfig], tmp_path: Path) -> None:
    config = family(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=256,
        pad_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    layers = [parameter.numel() for name, parameter in model.named_parameters() if "_proj" in name]
    assert footprint(tmp_path, 1).largest == max(layers)


@pytest.mark.parametrize("recipe", ["rtn-w4g128", "rtn-w4g128-sym", "nf4"])
def test_quantized_layers_stay_as_they_are_stored(recipe: str, tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    folder = make_artifact(parse(recipe), tiny, calibration, str(tmp_path)).path
    half, single = (footprint(folder, 1, float_bytes=size).weights for size in (2, 4))
    linear = sum(p.numel() for name, p in load(tiny).named_parameters() if "_proj" in name)
    assert footprint(folder, 1).codes == linear // 2
    assert half == pytest.approx(disk_bytes(folder), rel=0.02)  # but for the headers
    floats = sum(p.numel() for name, p in load(tiny).named_parameters() if "_proj" not in name)
    assert single - half == pytest.approx(2 * floats, rel=0.02)


@pytest.mark.parametrize(("recipe", "kept"), [("q8_0", ()), ("q4_k_m", ("Q4_K",))])
def test_llamacpp_keeps_repacked_weights_twice(
    recipe: str, kept: tuple[str, ...], tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path
) -> None:
    from gguf import GGUFReader

    folder = make_artifact(parse(recipe), tiny, calibration, str(tmp_path)).path
    tensors = GGUFReader(next(folder.glob("*.gguf"))).tensors
    stored = sum(int(tensor.n_bytes) for tensor in tensors)
    twice = sum(int(tensor.n_bytes) for tensor in tensors if tensor.tensor_type.name in kept)
    assert bool(twice) == bool(kept)
    if twice:  # what `qlab plan` counts from the shape alone
        assert q4_k_bytes(shape_of(tiny.config)) == pytest.approx(twice, rel=0.01)
    assert footprint(folder, 300, on_gpu=True).weights == stored
    if platform.machine() in ("x86_64", "AMD64"):
        assert footprint(folder, 300).weights == stored + twice
    found = footprint(folder, 300)
    assert found.context == 512  # in cells of 256
    assert found.total == found.weights + 512 * found.cache + found.overhead > found.weights
