"""A model's sizes and its rotary embedding under GGUF's names (llama.cpp's conversion/base.py and conversion/llama.py)."""

from __future__ import annotations

import math
from typing import Any

import gguf
import torch
from torch import Tensor

from qlab.formats.gguf.architectures import ARCHITECTURES, Architecture
from qlab.formats.gguf.mix import FILE_TYPES, expert_count
from qlab.support.errors import UserError

PARTLY = (gguf.MODEL_ARCH.PHI3, gguf.MODEL_ARCH.GLM4, gguf.MODEL_ARCH.STABLELM)  # these turn a part of each head where they are told to


def described(config: dict[str, Any]) -> Architecture:
    """llama.cpp's architecture for the model, with what it takes.

    Raises:
        UserError: a model type that this writer does not know, or a variant of one that llama.cpp would run wrongly.
    """
    kind = config["model_type"]
    if kind not in ARCHITECTURES:
        raise UserError(f"no GGUF writer for model type {kind!r}: expected one of {', '.join(ARCHITECTURES)}")
    found = ARCHITECTURES[kind]
    activation = config.get("hidden_activation") or config.get("hidden_act") or found.activations[0]
    if activation not in found.activations:
        raise UserError(f"llama.cpp's {kind} models compute {found.activations[0]}, this one {activation}: it cannot be written as GGUF")
    rope_type(config)
    if why := found.differs(config):
        raise UserError(f"llama.cpp would run this {kind} model as another function ({why}): it cannot be written as GGUF")
    return found


def architecture(config: dict[str, Any]) -> gguf.MODEL_ARCH:
    """GGUF's architecture for the model.

    Raises:
        UserError: see described.
    """
    return described(config).arch


def add_configuration(writer: gguf.GGUFWriter, config: dict[str, Any], mix: str) -> None:
    """The model's sizes, the mix and the rotary embedding."""
    heads = config["num_attention_heads"]
    writer.add_file_type(FILE_TYPES[mix])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    add_norm(writer, config)
    writer.add_rope_dimension_count(int(head_size(config) * turned_part(config)))
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_vocab_size(config["vocab_size"])
    for key, method in described(config).keys:
        if (value := config.get(key)) is not None:
            getattr(writer, method)(value)
    add_experts(writer, config)
    add_rope(writer, config)
    if mix != "f16":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def add_norm(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """What norms add to the variance: of their kind, root mean square or with the mean taken out."""
    if config.get("rms_norm_eps") is not None:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        return
    found = next((config[name] for name in ("layer_norm_eps", "norm_epsilon", "layer_norm_epsilon") if config.get(name) is not None), 1e-5)
    writer.add_layer_norm_eps(found)


def add_experts(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """How many experts there are and how wide, in a mixture of them."""
    if not (count := expert_count(config)):
        return
    writer.add_expert_count(count)
    writer.add_expert_used_count(config["num_experts_per_tok"])
    for key, add in (
        ("moe_intermediate_size", writer.add_expert_feed_forward_length),
        ("shared_expert_intermediate_size", writer.add_expert_shared_feed_forward_length),
    ):
        if config.get(key):
            add(config[key])


def add_rope(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """The rotary embedding's base and how it is stretched beyond the length of training."""
    rope, kind = rope_parameters(config), rope_type(config)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    local = (config.get("rope_parameters") or {}).get("sliding_attention", {}).get("rope_theta") or config.get("rope_local_base_freq")
    if local:
        writer.add_rope_freq_base_swa(float(local))
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(rope.get("original_max_position_embeddings") or config["max_position_embeddings"]))
        for key, add in (
            ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if rope.get(key) is not None:
                add(float(rope[key]))


def rope_factors(config: dict[str, Any]) -> Tensor | None:
    """Llama 3's rotary scaling: what to divide each frequency by, float32 [head size / 2]; None for other kinds.

    Long waves are stretched by the factor, short ones stay, and between the two limits it passes smoothly from one to the other.
    """
    if rope_type(config) != "llama3":
        return None
    rope, size = rope_parameters(config), head_size(config)
    frequencies = rope["rope_theta"] ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    waves_in_training = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    smooth = ((waves_in_training - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).float()


def rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """transformers' description of the rotary embedding, in its new place or its two old ones; its kind under `rope_type`."""
    parameters: dict[str, Any] = {"rope_theta": config.get("rope_theta") or 10000.0, "rope_type": "default"}
    stated = config.get("rope_parameters") or {}
    for given in (stated.get("full_attention", stated), config.get("rope_scaling") or {}):  # Gemma 3 has one for each kind of attention
        parameters |= given
        parameters["rope_type"] = str(given.get("rope_type") or given.get("type") or parameters["rope_type"])
    return parameters


def rope_type(config: dict[str, Any]) -> str:
    """default, linear, yarn or llama3.

    Raises:
        UserError: another kind, which the writer does not know.
    """
    rope = rope_parameters(config)
    kind = str(rope["rope_type"])
    if kind not in ("default", "linear", "yarn", "llama3"):
        raise UserError(f"no GGUF writer for rotary embeddings of type {kind!r}; expected default, linear, yarn or llama3")
    if turned_part(config) != 1 and ARCHITECTURES[config["model_type"]].arch not in PARTLY:
        raise UserError("no GGUF writer for rotary embeddings that turn a part of each head only (partial_rotary_factor)")
    return kind


def turned_part(config: dict[str, Any]) -> float:
    """How large a part of each head the rotary embedding turns."""
    rope = rope_parameters(config)
    return float(rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1)


def sliding_window(config: dict[str, Any]) -> int | None:
    """Tokens that each token attends to, itself included, where that is fewer than the model's context; None where all are seen.

    llama.cpp's models of these types have no window: a GGUF file computes the model's function in contexts up to so many tokens only.
    """
    kind, window = config["model_type"], None
    if kind == "mistral":
        window = config.get("sliding_window", 4096)
    elif kind in ("qwen2", "qwen3") and config.get("use_sliding_window"):
        layers = config.get("layer_types")
        used = "sliding_attention" in layers if layers else config.get("max_window_layers", 28) < config["num_hidden_layers"]
        window = config.get("sliding_window", 4096) if used else None
    return int(window) if window and window < config["max_position_embeddings"] else None


def head_size(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
