"""The walk on the families it promises to take: tiny random models of each, by their transformers classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qlab import EMBEDDED
from qlab.artifacts.artifact import quantize_model
from qlab.artifacts.block_shape import largest_block
from qlab.cli import call
from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import OpenedModel, decoder_layers, locate
from qlab.recipes import parse
from qlab.support.errors import UserError
from qlab.walk.folding import fold_scales
from qlab.walk.grouping import input_groups
from qlab.walk.skeleton import Skeleton
from qlab.walk.state.activations import Activations

SHAPE = (8, 64)  # windows, their length
QKV = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
OUT, DOWN = ["self_attn.o_proj"], ["mlp.down_proj"]
USUAL = [QKV, OUT, ["mlp.gate_proj", "mlp.up_proj"], DOWN]
PARALLEL = [[*QKV, "mlp.gate_proj", "mlp.up_proj"], OUT, DOWN]
# transformers' model type, what its configuration says beyond the sizes, and the layers that share an input.
FAMILIES: dict[str, tuple[str, dict[str, Any], list[list[str]]]] = {
    "llama": ("llama", {"mlp_bias": True, "attention_bias": True}, USUAL),
    "mistral": ("mistral", {}, USUAL),
    "qwen2": ("qwen2", {}, USUAL),
    "qwen3": ("qwen3", {"head_dim": 64}, USUAL),
    "cohere": ("cohere", {}, PARALLEL),
    "cohere-qk": ("cohere", {"use_qk_norm": True}, PARALLEL),
    "gemma": ("gemma", {"head_dim": 64}, USUAL),
    "gemma2": ("gemma2", {"head_dim": 64, "sliding_window": 16}, USUAL),
    "phi": ("phi", {"qk_layernorm": True}, [[*QKV, "mlp.fc1"], ["self_attn.dense"], ["mlp.fc2"]]),
    "phi3": ("phi3", {}, [["self_attn.qkv_proj"], OUT, ["mlp.gate_up_proj"], DOWN]),
    "nemotron": ("nemotron", {}, [QKV, OUT, ["mlp.up_proj"], DOWN]),  # not promised, but has the names of gated models and no gate
}
UNFOLDED = {"phi": {"mlp.fc2"}, "nemotron": {"mlp.down_proj"}}  # their inputs come from an activation
WRITTEN = ("llama", "mistral", "qwen2", "qwen3")  # as GGUF, and read from it
NO_GGUF = {
    "cohere-qk": "use_qk_norm is False there", "gemma2": "attention is scaled by heads of 64 there",
    "phi": "no GGUF writer for model type 'phi'", "nemotron": "no GGUF writer for model type 'nemotron'",
}  # fmt: skip


def make_family(folder: Path, kind: str, options: dict[str, Any], hidden: int) -> OpenedModel:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 4096, "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 2, "num_attention_heads": 8,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
        "initializer_range": 0.03,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(sizes | options)))
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.data.add_(0.3 * torch.rand_like(parameter))
            parameter.data[..., ::23].add_(0 if "self_attn" in name else 4)  # some channels far above the others
        elif name.endswith("bias"):
            parameter.data.normal_(0, 0.1)
    model.half().save_pretrained(folder)
    load_tokenizer(locate(str(EMBEDDED))).save_pretrained(folder)
    return locate(str(folder))


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def source(family: str, tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    hidden = 256 if family in WRITTEN else 128  # of a superblock of GGUF
    return make_family(tmp_path_factory.mktemp("families") / family, *FAMILIES[family][:2], hidden)


@torch.no_grad()
def logits(model: Any, windows: torch.Tensor) -> torch.Tensor:
    return model(windows[:2], use_cache=False).logits.float()


def test_blocks_compute_what_the_model_computes_and_folding_keeps_it(
    family: str, source: OpenedModel, calibration: torch.Tensor, tmp_path: Path
) -> None:
    skeleton = Skeleton(source, "cpu")
    with torch.no_grad():
        expected = load(source)(calibration, output_hidden_states=True).hidden_states
    hidden = Activations(tmp_path / "hidden", (*SHAPE, source.layout.hidden))
    skeleton.embed(calibration, hidden)
    assert torch.equal(hidden.pick(torch.arange(SHAPE[0])), expected[0])
    shapes = largest_block(source.layout).groups
    for index in range(len(skeleton)):
        block = skeleton.block(index, SHAPE[1])
        block.groups = input_groups(block, hidden.pick(torch.arange(1)))
        assert [group.layers for group in block.groups] == FAMILIES[family][2]
        assert [group.mixes for group in block.groups] == [True] + [False] * (len(block.groups) - 1)  # keys, values
        readers = [[block.layer(name) for name in group.layers] for group in block.groups]
        assert sorted(shapes) == sorted((layers[0].in_features, sum(layer.out_features for layer in layers)) for layers in readers)
        inputs = Activations(tmp_path / f"{index}", (*SHAPE, source.layout.hidden))
        inputs.write(iter([expected[index]]))
        before = torch.cat(list(block.outputs(inputs, 4)))
        if index + 1 < len(skeleton):  # behind the last comes the final norm
            torch.testing.assert_close(before, expected[index + 1], rtol=1e-4, atol=1e-4)
        weights = {name: block.layer(name).weight.clone() for name in block.layers}
        with torch.no_grad():
            scaled = fold_scales(block, block.observe(inputs, 4), lambda weight, *_: torch.rand(weight.shape[1]) * 1.5 + 0.5)
        changed = {name for name in block.layers if not torch.allclose(block.layer(name).weight, weights[name], rtol=0.2)}
        assert changed == set(block.layers) - UNFOLDED.get(family, set())
        after = torch.cat(list(block.outputs(inputs, 4)))
        assert float((after - before).norm() / (before - expected[index]).norm()) < 1e-5
        for name, seen in block.observe(inputs, 4).items():
            torch.testing.assert_close(scaled[name].hessian, seen.hessian, rtol=1e-3, atol=1e-3 * float(seen.hessian.abs().max()))


RECIPES = ["rtn-w4g32", "awq-w4g32", "gptq-w4g32", "tuned-w4g32-steps2", "nf4"]


def test_one_walk_quantizes_every_layer(family: str, source: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    model = load(source)
    recipes = RECIPES + (["q8_0", "q4_k_m"] if family in WRITTEN else [])
    made = {artifact.path.name: artifact for artifact in quantize_model(source, [parse(name) for name in recipes], calibration, tmp_path)}
    assert list(made) == recipes
    expected = logits(model, calibration)
    for name, artifact in made.items():
        distance = (logits(load(artifact.source), calibration) - expected).norm() / (expected - expected.mean(-1, keepdim=True)).norm()
        assert 1e-4 < distance < (0.05 if name == "q8_0" else 0.5)
        assert set(artifact.errors) == (set(decoder_layers(model)) if name != "q8_0" else set())
    for name in ("awq-w4g32", "gptq-w4g32"):
        assert all(error < made["rtn-w4g32"].errors[layer] for layer, error in made[name].errors.items())


def dry_run(source: OpenedModel, recipe: str, out: Path) -> int:
    words = ["quantize", "--model", str(source.path), "--recipe", "awq-w4g32", "--recipe", recipe, "--out", str(out), "--dry-run"]
    return call([*words, "--calibration", "python-reference", "--windows", "4", "--length", "32"])


def test_a_dry_run_predicts_and_gguf_is_refused_before_work_starts(
    family: str, source: OpenedModel, calibration: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry_run(source, "gptq-w4g32", tmp_path) == 0
    assert "one of 2 blocks" in capsys.readouterr().out
    if message := NO_GGUF.get(family):
        with pytest.raises(UserError, match=message):
            quantize_model(source, [parse("rtn-w4g32"), parse("q8_0")], calibration, tmp_path)
        assert dry_run(source, "q8_0", tmp_path) == 2
        assert message in capsys.readouterr().err
        assert not list(tmp_path.iterdir())


def test_models_of_another_shape_are_refused(calibration: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = AutoConfig.for_model("gpt2", vocab_size=4096, n_embd=64, n_layer=2, n_head=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    load_tokenizer(locate(str(EMBEDDED))).save_pretrained(tmp_path / "gpt2")
    source = locate(str(tmp_path / "gpt2"))
    with pytest.raises(UserError, match=r"gpt2 \(model type gpt2\) has no list of decoder blocks with linear layers"):
        quantize_model(source, [parse("rtn-w4g32")], calibration, tmp_path / "out")
    assert dry_run(source, "nf4", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()
    assert "has no list of decoder blocks with linear layers" in capsys.readouterr().err
