"""Shapes counted from a model's class, against what their makers publish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from qlab.artifacts.budget import predict
from qlab.models.experts import experts_per_token
from qlab.models.opening import locate
from qlab.plan.capacity import read_bytes
from qlab.plan.plan import cache_bytes, longest_context
from qlab.plan.shapes import config_shape
from qlab.recipes import parse
from qlab.support.errors import UserError

MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000, "tie_word_embeddings": False,
}  # fmt: skip
QWEN3_30B = {
    "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
    "vocab_size": 151936, "tie_word_embeddings": False, "norm_topk_prob": True,
}  # fmt: skip
GEMMA3_12B = {
    "model_type": "gemma3_text", "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 256, "sliding_window": 1024, "vocab_size": 262208,
}  # fmt: skip


@pytest.mark.parametrize(("config", "billions", "active"), [(MIXTRAL, 46.7, 12.9), (QWEN3_30B, 30.5, 3.3), (GEMMA3_12B, 11.8, 11.8)])
def test_weights_are_the_published_ones(config: dict[str, Any], billions: float, active: float) -> None:
    shape = config_shape(config, "the model")
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.01)
    assert (shape.read_parameters + shape.embedding_parameters) / 1e9 == pytest.approx(active, rel=0.02)
    assert read_bytes(shape, "FP16") < 2 * shape.parameters + 1


def test_windows_bound_the_cache() -> None:
    shape = config_shape(GEMMA3_12B, "the model")
    a_layer = 2 * 2 * 8 * 256  # bytes a token
    assert cache_bytes(shape, 512) == 48 * a_layer * 512
    assert cache_bytes(shape, 32768) == (8 * 32768 + 40 * 1024) * a_layer  # every sixth block sees all
    room = cache_bytes(shape, 32768)
    assert longest_context(shape, room) == 32768


SMALL = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64, "vocab_size": 1000, "max_position_embeddings": 32768,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "bounded"),  # and how many of four blocks attend to a window of 100 tokens
    [
        ({"model_type": "gemma2", "sliding_window": 100}, 2),
        ({"model_type": "mistral", "sliding_window": 100}, 4),
        ({"model_type": "mistral", "sliding_window": None}, 0),
        ({"model_type": "phi3", "sliding_window": 100, "pad_token_id": 0}, 4),
        ({"model_type": "phi3", "pad_token_id": 0}, 0),
        ({"model_type": "qwen2", "sliding_window": 100, "use_sliding_window": True, "max_window_layers": 3}, 1),
        ({"model_type": "qwen3", "sliding_window": 100, "use_sliding_window": False}, 0),
    ],
)
def test_windows_of_dense_decoders_bound_it_too(config: dict[str, Any], bounded: int) -> None:
    a_layer = 2 * 2 * 2 * 64
    assert cache_bytes(config_shape(SMALL | config, "the model"), 1000) == ((4 - bounded) * 1000 + bounded * 100) * a_layer


def test_a_wrapped_model_may_leave_the_sizes_to_its_class() -> None:
    text = {"model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32064}  # as LLaVA 1.5's says, and no more
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
    }  # fmt: skip
    shape = config_shape({"model_type": "llava", "text_config": text, "vision_config": vision}, "LLaVA 1.5 7B")
    assert shape.parameters / 1e9 == pytest.approx(7.06, rel=0.01)
    for lacking in ({"model_type": "llava", "text_config": {"vocab_size": 32064}}, {"model_type": "mixtral"}):
        with pytest.raises(UserError, match="lacks num_hidden_layers"):
            config_shape(lacking, "the model")


def test_heads_that_differ_between_blocks_are_counted_for_each() -> None:
    config = SMALL | {"model_type": "gemma4_text", "global_head_dim": 128, "sliding_window": 100, "hidden_size_per_layer_input": 0}
    config |= {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"] * 2}
    shape = config_shape(config, "the model")
    assert cache_bytes(shape, 1000) == 2 * 2 * 2 * (2 * 100 * 64 + 2 * 1000 * 128)
    shared = config_shape(config | {"num_kv_shared_layers": 2}, "the model")  # the last two read what the first two keep
    assert cache_bytes(shared, 1000) == cache_bytes(shape, 1000) / 2


def test_how_many_experts_a_token_is_given_is_read_under_its_other_names() -> None:
    assert experts_per_token(AutoConfig.for_model("mixtral", num_experts_per_tok=3)) == 3
    assert experts_per_token(AutoConfig.for_model("hunyuan_v1_moe", moe_topk=[2, 4], num_hidden_layers=2)) == 4
    assert experts_per_token(AutoConfig.for_model("llama")) == 0


def test_a_state_does_not_grow_with_the_text() -> None:
    config = {
        "model_type": "qwen3_next", "hidden_size": 2048, "num_hidden_layers": 4, "num_experts": 8, "num_attention_heads": 16,
        "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 1000, "linear_num_value_heads": 32, "linear_num_key_heads": 16,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    }  # fmt: skip
    shape = config_shape(config, "the model")
    assert cache_bytes(shape, 2000) - cache_bytes(shape, 1000) == 2 * 2 * 2 * 256 * 1000  # one block of four has a cache
    assert shape.counted
    assert [block.state for block in shape.counted.cached] == [32 * 128 * 128] * 3 + [0]


def test_mamba_s_state_is_counted_by_its_own_sizes_and_infinity_is_read_as_transformers_writes_it() -> None:
    config = {
        "model_type": "granitemoehybrid", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["mamba", "attention"],
        "vocab_size": 1000, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1,
        "time_step_limit": [0.0, {"__float__": "Infinity"}],
    }  # fmt: skip
    shape = config_shape(config, "the model")
    assert shape.counted
    assert [block.state for block in shape.counted.cached] == [4 * 32 * 16, 0]


@pytest.mark.parametrize(("config", "experts"), [(MIXTRAL, 8), (QWEN3_30B, 128)])
def test_a_walk_holds_one_block_and_one_experts_statistics(config: dict[str, Any], experts: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = locate(str(tmp_path), weights=False)
    found = predict(source, [parse("gptq-w4g128")], (128, 512))
    width, inner = config["hidden_size"], config.get("moe_intermediate_size", config["intermediate_size"])
    queries = config["num_attention_heads"] * config.get("head_dim", 128)
    keys = config["num_key_value_heads"] * config.get("head_dim", 128)
    assert found.block == 4 * (experts * 3 * width * inner + 2 * width * queries + 2 * width * keys)
    assert found.statistics == 4 * (2 * width**2 + queries**2 + inner**2)  # attention's two inputs, and an expert's two
