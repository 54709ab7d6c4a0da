"""Blocks that are called in other ways than Llama's are walked like all others, and models that cannot be walked are refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qlab.artifacts.artifact import fit, quantize_model
from qlab.artifacts.converting import convert
from qlab.models import naming
from qlab.models.loading import load
from qlab.models.opening import OpenedModel, locate
from qlab.recipes import parse
from qlab.support.errors import UserError
from qlab.walk.by_block import BlockByBlock, held_whole
from qlab.walk.called import told_apart
from qlab.walk.skeleton import Skeleton
from tests.walk.families import EXPERTS, FAMILIES, Family, make, mixture

OTHERWISE = {
    "bamba": Family(  # its class takes two things from a block
        "bamba",
        {
            "attn_layer_indices": [1],
            "mamba_n_heads": 4,
            "mamba_d_head": 32,
            "mamba_d_state": 16,
            "mamba_n_groups": 1,
        },
    ),
    "recurrent_gemma": Family("recurrent_gemma", {"head_dim": 16, "attention_window_size": 16, "lru_width": 64}),  # passes by place
    "opt": Family("opt", {"ffn_dim": 128, "word_embed_proj_dim": 64}),  # learned positions
}
GEMMA4 = {
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 16,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
NO = {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}


@torch.no_grad()
def logits(model: Any, windows: Tensor) -> Tensor:
    return model(input_ids=windows, use_cache=False).logits.float()


@pytest.mark.parametrize("kind", ["bloom", "xglm", "falcon"])
def test_several_windows_go_through_a_block_as_each_alone(kind: str, calibration: Tensor, tmp_path: Path) -> None:
    """BLOOM's ALiBi has an entry for each head of each window, and XGLM checks that its mask has one for each window."""
    family = FAMILIES[kind]
    source = make(tmp_path / "model", Family(kind, family.options | {"num_hidden_layers": 5}))  # more than a window has dimensions
    skeleton = Skeleton(source, "cpu")
    hidden = torch.randn(3, 16, source.layout.hidden, generator=torch.Generator().manual_seed(0))
    block = skeleton.block(1, 16)
    with torch.no_grad():
        torch.testing.assert_close(block.forward(hidden), torch.cat([block.forward(window) for window in hidden.split(1)]))


def test_what_depends_on_the_number_of_windows_in_another_way_is_refused() -> None:
    one = {"lengths": torch.tensor([0, 8]), "angles": (torch.ones(1, 8), None)}
    assert told_apart(one, one, "model") == one
    with pytest.raises(UserError, match="blocks of model are called with depends on the number of windows"):
        told_apart(one, one | {"lengths": torch.tensor([0, 8, 16])}, "model")


@pytest.mark.parametrize("kind", OTHERWISE)
def test_blocks_that_are_called_otherwise(kind: str, calibration: Tensor, tmp_path: Path) -> None:
    source, windows = make(tmp_path / "model", OTHERWISE[kind]), calibration[:3, :32]
    expected = logits(load(source), windows)
    torch.testing.assert_close(torch.stack(list(BlockByBlock(source, windows, place=tmp_path))), expected[:, :-1], rtol=1e-4, atol=1e-4)
    (made,) = quantize_model(source, [parse("gptq-w4g32")], windows, tmp_path / "out")
    found = logits(load(made.source), windows)
    assert 1e-3 < float((found - expected).norm() / (expected - expected.mean(-1, keepdim=True)).norm()) < 0.5


def test_gemma_4_is_walked_where_its_blocks_read_hidden_states_alone(calibration: Tensor, tmp_path: Path) -> None:
    source, windows = make(tmp_path / "model", Family("gemma4_text", GEMMA4 | NO)), calibration[:3, :32]
    assert not source.not_walked
    expected = logits(load(source), windows)
    torch.testing.assert_close(torch.stack(list(BlockByBlock(source, windows, place=tmp_path))), expected[:, :-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_kv_shared_layers": 2}, "the last 2 blocks of model read keys and values of blocks before them"),
        ({"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 4096}, "each block of model reads an embedding of the text"),
    ],
)
def test_blocks_that_read_more_than_hidden_states_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = make(tmp_path / "model", Family("gemma4_text", GEMMA4 | NO | options))
    with pytest.raises(UserError, match=message):
        fit(source, [parse("nf4")])
    with pytest.raises(UserError, match=message):
        Skeleton(source, "cpu")
    assert held_whole(source)  # and so it is measured all the same


def test_several_streams_in_place_of_a_hidden_state_are_refused(calibration: Tensor, tmp_path: Path) -> None:
    source = make(tmp_path / "model", mixture("qwen4_exp_text", EXPERTS, head_dim=16))
    with pytest.raises(UserError, match="numbers a token and not a hidden state of 64"):
        quantize_model(source, [parse("gptq-w4g32")], calibration[:2, :32], tmp_path / "out")


def test_a_tensor_that_a_checkpoint_holds_in_parts_is_read_whole_and_written_in_parts(calibration: Tensor, tmp_path: Path) -> None:
    """OLMo-hybrid's files have a convolution each for queries, keys and values, its class has one."""
    source = make(tmp_path / "model", FAMILIES["olmo_hybrid"])
    made = quantize_model(source, [parse("nf4")], calibration[:2, :32], tmp_path / "out")[0]
    names = [f"model.layers.0.linear_attn.{part}_conv1d.weight" for part in "qkv"]
    before, after = load_file(source.folder / "model.safetensors"), load_file(made.path / "model.safetensors")
    for name in names:
        torch.testing.assert_close(after[name], before[name])
    whole = source.checkpoint.read("model.layers.0.linear_attn.conv1d.weight")
    torch.testing.assert_close(whole, torch.cat([before[name] for name in names]))
    assert not [name for name in after if name.endswith(".conv1d.weight")]
    grouped = quantize_model(source, [parse("gptq-w4g32")], calibration[:2, :32], tmp_path / "out")[0]
    converted = convert(grouped.source, "compressed-tensors", tmp_path / "converted")
    stored = load_file(converted.path / "model.safetensors")
    assert set(names) <= set(stored)
    assert not [name for name in stored if name.endswith(".conv1d.weight")]


def test_a_tensor_that_a_checkpoint_holds_in_parts_otherwise_than_by_rows_is_not_said_to_be_lacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path / "model", FAMILIES["olmo_hybrid"])
    monkeypatch.setattr(naming, "ROWS", ("Concatenate", 1))
    with pytest.raises(UserError, match=r"holds model\.layers\.0\.linear_attn\.conv1d\.weight in 3 tensors .* which transformers joins"):
        fit(source, [parse("nf4")])


def test_blocks_that_read_what_the_block_before_computed_are_refused(tiny: OpenedModel) -> None:
    """As Zaya's, whose routers read those of the block before. Its class takes apart what a block returns, and hands it on."""
    skeleton = Skeleton(tiny, "cpu")
    backbone = skeleton.model.get_submodule(skeleton.layout.backbone)

    def handing_on(input_ids: Tensor, **_: Any) -> None:
        hidden, router = backbone.get_input_embeddings()(input_ids), None
        for block in backbone.layers:
            hidden, router = block(hidden, router=router)

    backbone.forward = handing_on
    with pytest.raises(UserError, match="blocks of tiny read more of the block before than hidden states"):
        skeleton.learn_arguments([8])


def read_ahead(source: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> Skeleton:
    """A skeleton whose first block was read ahead as beside a GPU, into memory that is not pinned."""
    monkeypatch.setattr("qlab.walk.skeleton.pinned", lambda shape, dtype, _: torch.empty(shape, dtype=dtype))
    skeleton = Skeleton(source, "cpu")
    skeleton.device = "cuda"
    skeleton.read_ahead(0)
    skeleton.device = "cpu"
    return skeleton


def test_a_block_that_was_read_ahead_has_the_same_weights(tiny: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Skeleton(tiny, "cpu").fill(0).state_dict()
    found = read_ahead(tiny, monkeypatch).fill(0).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_what_is_read_ahead_is_seen_to_be_finite(tiny: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny.path, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    name = tiny.layout.block(0) + "mlp.up_proj.weight"
    weights[name][1, 2] = torch.nan
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{name} holds NaN"):
        read_ahead(locate(str(tmp_path / "model")), monkeypatch).fill(0)
