"""Tiny random models of the families that qlab takes, by their transformers classes: the one table that the tests go over."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from qlab import EMBEDDED
from qlab.models.layout import class_of
from qlab.models.loading import load_tokenizer
from qlab.models.opening import OpenedModel, locate

SIZES = {
    "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    "initializer_range": 0.06,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
DEEP = {  # DeepSeek and what came after: the first block dense, experts chosen in groups, some shared by all tokens
    "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "n_group": 2, "topk_group": 1, "num_key_value_heads": 4,
}  # fmt: skip
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "depth": 2, "num_attention_heads": 2, "num_heads": 2,
    "image_size": 32, "patch_size": 8, "num_channels": 3, "in_channels": 3, "out_hidden_size": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """transformers' model type, what its configuration says beyond SIZES, and that of the parts of one that reads images too.

    `mixture`: whether it has experts.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    mixture: bool = False


def mixture(kind: str, *options: dict[str, Any], **more: Any) -> Family:
    merged: dict[str, Any] = {}
    for option in options:
        merged |= option
    return Family(kind, merged | more, mixture=True)


def wrapped(
    kind: str, text: dict[str, Any] | None = None, vision: dict[str, Any] | None = None, mixture: bool = False, **more: Any
) -> Family:
    return Family(kind, more, {"text_config": SIZES | (text or {}), "vision_config": VISION | (vision or {})}, mixture)


FAMILIES = {
    # mixtures of experts
    "mixtral": mixture("mixtral", LOCAL),
    "qwen2_moe": mixture("qwen2_moe", EXPERTS, shared_expert_intermediate_size=64),
    "qwen3_moe": mixture("qwen3_moe", EXPERTS, norm_topk_prob=True, head_dim=16),
    "olmoe": mixture("olmoe", {"num_experts": 4, "num_experts_per_tok": 2}, num_key_value_heads=4),
    "deepseek_v2": mixture("deepseek_v2", DEEP, LATENT, topk_method="greedy", n_group=1),
    "deepseek_v3": mixture("deepseek_v3", DEEP, LATENT),
    "glm4_moe": mixture("glm4_moe", DEEP, num_key_value_heads=2, head_dim=16),
    "gpt_oss": mixture("gpt_oss", LOCAL, head_dim=16, layer_types=["sliding_attention", "full_attention"], sliding_window=16),
    "granitemoe": mixture("granitemoe", LOCAL),
    "granitemoeshared": mixture("granitemoeshared", LOCAL, shared_intermediate_size=64),
    "minimax_m2": mixture("minimax_m2", LOCAL, head_dim=16, rotary_dim=8),
    "phimoe": mixture("phimoe", LOCAL),
    "ernie4_5_moe": mixture("ernie4_5_moe", {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64, "moe_num_shared_experts": 1}),
    "dots1": mixture("dots1", DEEP),
    "lfm2_moe": mixture("lfm2_moe", EXPERTS, num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"], num_dense_layers=1),
    "qwen3_next": mixture(
        "qwen3_next",
        EXPERTS,
        layer_types=["linear_attention", "full_attention"],
        shared_expert_intermediate_size=64,
        head_dim=16,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
    ),
    "granitemoehybrid": mixture(
        "granitemoehybrid",
        LOCAL,
        layer_types=["mamba", "attention"],
        shared_intermediate_size=64,
        mamba_n_heads=4,
        mamba_d_head=32,
        mamba_d_state=16,
        mamba_n_groups=1,
    ),
    # models that read images too
    "gemma3": wrapped(
        "gemma3",
        {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16},
        {"model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
    ),
    "mistral3": wrapped("mistral3", {"model_type": "mistral", "head_dim": 16}, {"model_type": "pixtral", "head_dim": 16}),
    "qwen2_vl": wrapped(
        "qwen2_vl",
        {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}},
        {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
    ),
    "qwen2_5_vl": wrapped("qwen2_5_vl", {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}}),
    "qwen3_vl": wrapped(
        "qwen3_vl",
        {"head_dim": 16, "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 1e4}},
        {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    ),
    "qwen3_vl_moe": wrapped(
        "qwen3_vl_moe",
        EXPERTS | {"head_dim": 16, "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 1e4}},
        {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        mixture=True,
    ),
    "llama4": wrapped(
        "llama4",
        LOCAL
        | {
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 96,
            "interleave_moe_layer_step": 2,
            "head_dim": 16,
            "attention_chunk_size": 16,
            "no_rope_layers": [1, 0],
        },
        {"vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64},
        mixture=True,
    ),
    "idefics3": wrapped("idefics3", {"model_type": "llama"}, {"model_type": "idefics3_vision"}, image_token_id=4095),
    # dense decoders as most are
    "llama": Family("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": Family("mistral"),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3", {"head_dim": 16}),
    # hybrids, attention that differs from block to block, blocks under another name
    "lfm2": Family("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "olmo_hybrid": Family(
        "olmo_hybrid",
        {
            "layer_types": ["linear_attention", "full_attention"],
            "rope_parameters": None,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 4,
            "linear_key_head_dim": 12,
            "linear_value_head_dim": 24,
        },
    ),
    "gemma3_text": Family(
        "gemma3_text",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "cohere2": Family("cohere2", {"sliding_window": 16}),
    "olmo2": Family("olmo2"),
    "olmo3": Family("olmo3", {"sliding_window": 16}),
    "smollm3": Family("smollm3", {"num_hidden_layers": 4}),
    "gemma": Family("gemma", {"head_dim": 16}),
    "gemma2": Family("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}),
    "cohere": Family("cohere"),
    "glm": Family("glm", {"head_dim": 16}),
    "glm4": Family("glm4", {"head_dim": 16}),
    "granite": Family("granite", {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22}),
    "phi4": Family("phi3", {"partial_rotary_factor": 0.5}),
    "stablelm": Family("stablelm", {"use_qkv_bias": True}),
    "starcoder2": Family("starcoder2"),
    "gpt_neox": Family("gpt_neox", {"num_key_value_heads": None}),
    "falcon": Family("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": False}),
    "exaone4": Family("exaone4", {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}),
    "seed_oss": Family("seed_oss", {"head_dim": 16}),
    "ministral3": Family("ministral3", {"head_dim": 16}),
    "bloom": Family("bloom", {"num_hidden_layers": 5, "num_key_value_heads": None}),
    "xglm": Family("xglm", {"ffn_dim": 128, "num_key_value_heads": None}),
}


def configuration_of(family: Family) -> Any:
    if family.parts:
        return AutoConfig.for_model(family.kind, bos_token_id=0, eos_token_id=0, pad_token_id=0, **family.options, **family.parts)
    return AutoConfig.for_model(family.kind, **(SIZES | family.options))


def make(folder: Path, family: Family) -> OpenedModel:
    """A model of a family as its class saves it, in FP16, with numbers that no test of an identity could pass."""
    torch.manual_seed(0)
    configuration = configuration_of(family)
    model: PreTrainedModel = class_of(configuration, family.kind).from_config(configuration)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.data.add_(0.3 * torch.rand_like(parameter))
        elif name.endswith("bias"):
            parameter.data.normal_(0, 0.1)
    for name, buffer in model.named_buffers():
        if name.endswith("bias"):  # of what chooses experts
            buffer.normal_(0, 0.1)
    model.half().save_pretrained(folder)
    load_tokenizer(locate(str(EMBEDDED))).save_pretrained(folder)
    return locate(str(folder))
