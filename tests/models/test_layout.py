"""What a decoder consists of, by looking at its transformers class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from qlab.models.layout import Layout, class_of, empty_model, layout_of, opened_layout
from qlab.support.errors import UserError

SIZES = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def layout(kind: str, **options: Any) -> Layout:
    return layout_of(empty_model(AutoConfig.for_model(kind, **(SIZES | {"pad_token_id": 0} | options)), kind), kind)


@pytest.mark.parametrize(
    ("kind", "options", "blocks", "head"),
    [
        ("llama", {"num_key_value_heads": 2}, "model.layers", "lm_head.weight"),
        ("llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}, "model.layers", "model.embed_tokens.weight"),
        ("phi", {}, "model.layers", "lm_head.weight"),
        ("gpt_neox", {}, "gpt_neox.layers", "lm_head.weight"),
        ("falcon", {}, "transformer.h", "transformer.word_embeddings.weight"),
        ("opt", {"ffn_dim": 128, "word_embed_proj_dim": 64}, "model.decoder.layers", "model.decoder.embed_tokens.weight"),
    ],
)  # fmt: skip
def test_blocks_and_head_are_found_wherever_they_lie(kind: str, options: dict[str, Any], blocks: str, head: str) -> None:
    found = layout(kind, **options)
    assert (found.blocks, found.head, found.count, found.hidden) == (blocks, head, 2, 64)
    assert all(found.inside(name) for name in found.linear)
    assert found.head in found.shapes
    assert found.embedding in found.rest
    assert not any(name == "lm_head.weight" for name in found.rest) or found.head == "lm_head.weight"


def test_norms_that_are_matrices_are_no_linear_layers() -> None:
    found = layout("cohere", use_qk_norm=True, num_key_value_heads=2)
    assert len(found.shapes["model.layers.0.self_attn.q_norm.weight"]) == 2
    assert "model.layers.0.self_attn.q_norm.weight" not in found.linear
    assert found.linear["model.layers.1.self_attn.q_proj.weight"] == (64, 64)


def test_layouts_take_no_memory_for_weights() -> None:
    model = empty_model(AutoConfig.for_model("llama", **(SIZES | {"vocab_size": 10**9})), "large")
    assert model.get_input_embeddings().weight.device == torch.device("meta")


@pytest.mark.parametrize(
    ("kind", "architectures", "expected"),
    [
        ("llama4", None, AutoModelForImageTextToText),
        ("llama4", ["Llama4ForConditionalGeneration"], AutoModelForImageTextToText),
        ("llama4", ["Llama4ForCausalLM"], AutoModelForCausalLM),  # its language model alone
        ("qwen3_5", None, AutoModelForImageTextToText),
        ("gemma3", None, AutoModelForImageTextToText),
        ("gemma3_text", None, AutoModelForCausalLM),
        ("llama", ["SomeoneElsesLlama"], AutoModelForCausalLM),
    ],
)
def test_a_model_that_reads_images_is_opened_whole(kind: str, architectures: list[str] | None, expected: type) -> None:
    assert class_of(AutoConfig.for_model(kind, architectures=architectures), kind) is expected


def test_a_head_is_the_embedding_where_the_class_makes_it_so() -> None:
    text = SIZES | {"num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "intermediate_size_mlp": 64, "num_local_experts": 2}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    for within, head in ((False, "language_model.lm_head.weight"), (True, "language_model.model.embed_tokens.weight")):
        parts = {"text_config": text | {"tie_word_embeddings": within}, "vision_config": vision}
        configuration = AutoConfig.for_model("llama4", tie_word_embeddings=True, **parts)
        assert layout_of(empty_model(configuration, "llama4"), "llama4").head == head


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("gpt2", {"n_embd": 64, "n_head": 4, "n_layer": 2}, "no list of decoder blocks with linear layers"),
        ("t5", {}, "is of type t5, which transformers opens neither as a language model nor"),
        ("clip", {}, "is of type clip"),
        ("jetmoe", {"num_hidden_layers": 2, "hidden_size": 64}, "JetMoeParallelExperts computes in a way of its own"),
        (
            "dbrx",
            {"d_model": 64, "n_heads": 4, "n_layers": 2, "attn_config": {"rope_theta": 1e4}, "ffn_config": {"ffn_hidden_size": 64}},
            "in no linear layer, which DbrxExpertGLU",
        ),
        (
            "llama4_text",
            {"num_hidden_layers": 2, "num_experts_per_tok": 2},
            "a token to 2 experts, each of which reads it times another score",
        ),
        ("llama", SIZES | {"hidden_act": "none of them"}, "cannot open llama"),
    ],
)
def test_what_is_no_decoder_of_linear_layers_is_refused_in_one_sentence(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        opened_layout(AutoConfig.for_model(kind, **options), kind)
    assert len(str(caught.value)) < 260
