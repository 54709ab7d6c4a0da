"""Models whose activations leave FP16's range: their artifacts are BF16, say so, and run so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qlab.artifacts.artifact import quantize_model
from qlab.models.loading import load
from qlab.models.opening import OpenedModel, locate
from qlab.models.plain_copy import plain_copy
from qlab.recipes import parse
from qlab.walk.span import Largest, overflows
from tests.conftest import tiny_folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    """A BF16 model whose first MLP holds values near 1e6, which its down projection makes small again."""
    folder = tiny_folder(tmp_path_factory.mktemp("models") / "large")
    state = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    state["model.layers.0.mlp.up_proj.weight"] *= 3e6
    state["model.layers.0.mlp.down_proj.weight"] *= 1e-5
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    return locate(str(folder))


def test_artifacts_of_a_model_that_overflows_fp16_are_bf16(large: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    for artifact in quantize_model(large, [parse(name) for name in ("awq-w4g128", "gptq-w4g128", "nf4")], calibration, tmp_path / "out"):
        assert json.loads((artifact.path / "config.json").read_text())["dtype"] == "bfloat16"
        assert "BF16" in artifact.manifest["notes"]["dtype"]
        stored = load_file(artifact.path / "model.safetensors")
        assert {stored[name].dtype for name in ("model.embed_tokens.weight", "model.norm.weight")} == {torch.bfloat16}
        model = load(artifact.source, torch.bfloat16).eval()
        assert model(calibration[:1]).logits.isfinite().all()
        assert not model.half()(calibration[:1]).logits.isfinite().all()  # else this model would show nothing
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "nf4", dtype="auto", device_map="cpu").eval()
    assert own(calibration[:1]).logits.isfinite().all()


@pytest.fixture(scope="module")
def large_norms(tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    """A BF16 model with a norm whose weights alone are beyond FP16, and projections that make its output small again."""
    folder = tiny_folder(tmp_path_factory.mktemp("models") / "norms")
    state = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    state["model.layers.0.input_layernorm.weight"] *= 1e5
    for part in "qkv":
        state[f"model.layers.0.self_attn.{part}_proj.weight"] *= 1e-5
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    return locate(str(folder))


def test_tuned_norms_keep_the_range_of_the_model(large_norms: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    (artifact,) = quantize_model(large_norms, [parse("tuned-w4g128-steps2")], calibration, tmp_path / "out")
    norm = load_file(artifact.path / "model.safetensors")["model.layers.0.input_layernorm.weight"]
    assert norm.dtype == torch.bfloat16
    assert norm.isfinite().all()
    assert norm.max() > 65504
    assert load(artifact.source)(calibration[:1]).logits.isfinite().all()


def test_a_plain_copy_of_such_an_artifact_is_bf16_too(large_norms: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    (artifact,) = quantize_model(large_norms, [parse("rtn-w4g128")], calibration, tmp_path / "out")
    copy = plain_copy(artifact.source, tmp_path / "copy")
    assert json.loads((copy.path / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_file(copy.path / "model.safetensors")["model.layers.0.input_layernorm.weight"].dtype == torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(copy.path, dtype="auto").eval()
    assert model(calibration[:1]).logits.isfinite().all()


def test_artifacts_of_other_models_stay_in_fp16(tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    for artifact in quantize_model(tiny, [parse("rtn-w4g128"), parse("nf4")], calibration, tmp_path / "out"):
        assert json.loads((artifact.path / "config.json").read_text())["dtype"] == "float16"
        assert "dtype" not in artifact.manifest["notes"]
        assert load_file(artifact.path / "model.safetensors")["model.norm.weight"].dtype == torch.float16


def test_the_largest_value_counts_its_sign_out_and_skips_empty_tensors() -> None:
    largest = Largest()
    for tensor in (torch.tensor([1.0, -7.0]), torch.empty(0), torch.tensor([3.0]).half()):
        largest.see(tensor)
    assert largest.value == 7.0
    assert not overflows(32752.0)
    assert overflows(32753.0)
