"""Which tensor gets which type: llama.cpp's mixes, by the rules of llama-quant.cpp (llama_tensor_get_type), those for Falcon alone apart.

A mix has one type for most tensors and spends more bits where they are few or matter most: on the output (or the embedding that
serves as one), on attention's values, on the MLP's down projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gguf

from qlab.methods.kquants.kinds import KINDS
from qlab.support.errors import UserError

# Each mix's type for most tensors, and its number in the file's header.
DEFAULT = {
    "f16": "F16", "q8_0": "Q8_0", "q6_k": "Q6_K", "q5_k_m": "Q5_K", "q5_k_s": "Q5_K", "q4_k_m": "Q4_K", "q4_k_s": "Q4_K", "q3_k_l": "Q3_K",
    "q3_k_m": "Q3_K", "q2_k": "Q2_K",
}  # fmt: skip
MORE_BITS = ("q4_k_m", "q5_k_m")  # mixes that spend Q6_K on every third block or so
FILE_TYPES = {mix: gguf.LlamaFileType[f"MOSTLY_{mix.upper()}"] for mix in DEFAULT}
KEPT = ("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "ssm_conv1d.weight", "shortconv.conv.weight")  # in FP32
# Rows that superblocks of 256 do not divide get blocks of 32 (tensor_type_fallback).
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def check_mix(mix: str) -> None:
    """Raise a UserError unless `mix` is known."""
    if mix not in DEFAULT:
        raise UserError(f"no GGUF mix {mix!r}: expected one of {', '.join(DEFAULT)}")


def tensor_type(name: str, shape: Sequence[int], mix: str, config: dict[str, Any]) -> str:
    """The GGML type that the mix gives the tensor with this GGUF name and shape, in a model of this configuration.

    Raises:
        UserError: an unknown mix.
    """
    check_mix(mix)
    if len(shape) == 1 or not name.endswith(".weight") or name.endswith(KEPT):
        return "F32"
    if mix == "f16":
        return "F16"
    return fitting(wanted_type(name, mix, config), shape[-1])


def fitting(kind: str, columns: int) -> str:
    """The type itself, or what llama.cpp falls back to where its blocks do not divide the row."""
    if columns % KINDS[kind].block:
        kind = FALLBACK.get(kind, kind)
    return "F16" if columns % KINDS[kind].block else kind


def fallback_note(name: str, shape: Sequence[int], mix: str, config: dict[str, Any]) -> str:
    """What type the tensor got instead of the one that the mix has for it, and why; empty where it got that one."""
    given = tensor_type(name, shape, mix, config)
    if given == "F32" or mix == "f16" or given == (wanted := wanted_type(name, mix, config)):
        return ""
    block = KINDS[FALLBACK.get(wanted, wanted) if given == "F16" else wanted].block
    return f"{given} instead of {wanted}, since blocks of {block} do not divide rows of {shape[-1]} weights"


def wanted_type(name: str, mix: str, config: dict[str, Any]) -> str:
    """The type by the tensor's part in the model, before any fallback."""
    default = DEFAULT[mix]
    if name == "output.weight" or (name == "token_embd.weight" and config.get("tie_word_embeddings", False)):
        return "Q8_0" if default == "Q8_0" else "Q6_K"
    if mix == "q8_0" or not name.startswith("blk."):
        return default
    layer, part = int(name.split(".")[1]), name.split(".")[2]
    if part in ("attn_v", "attn_qkv", "attn_kv_b"):
        return value_type(layer, mix, config)
    if part == "attn_k" and eight_experts(config):
        return "Q8_0"
    if part.startswith("ffn_down"):
        return down_type(layer, mix, config["num_hidden_layers"])
    if part == "attn_output":
        return attention_output_type(mix, config)
    return default


def value_type(layer: int, mix: str, config: dict[str, Any]) -> str:
    """The type of attention's value projection, and of one that holds it too: small where heads share it, and sensitive."""
    if eight_experts(config):
        return "Q8_0"
    kind = DEFAULT[mix]
    if mix == "q2_k":
        kind = "Q4_K" if heads_sharing(config) >= 4 else "Q3_K"
    elif mix == "q3_k_l":
        kind = "Q5_K"
    elif mix == "q3_k_m":
        kind = "Q5_K" if layer < 2 else "Q4_K"
    elif mix == "q4_k_s":
        kind = "Q5_K" if layer < 4 else "Q4_K"
    elif mix in MORE_BITS and more_bits(layer, config["num_hidden_layers"]):
        kind = "Q6_K"
    return "Q5_K" if is_70b(config) and kind in ("Q3_K", "Q4_K") else kind


def down_type(layer: int, mix: str, layers: int) -> str:
    """The type of the MLP's down projection."""
    if mix == "q2_k":
        return "Q3_K"
    if mix == "q3_k_l":
        return "Q5_K"
    if mix == "q3_k_m":
        return "Q5_K" if layer < layers // 16 else "Q4_K"
    if mix == "q4_k_s":
        return "Q5_K" if layer < layers // 8 else "Q4_K"
    return "Q6_K" if mix in MORE_BITS and more_bits(layer, layers) else DEFAULT[mix]


def attention_output_type(mix: str, config: dict[str, Any]) -> str:
    """The type of attention's output projection."""
    if eight_experts(config) and mix in ("q2_k", "q3_k_m", "q4_k_s", "q4_k_m"):
        return "Q5_K"
    return {"q2_k": "Q3_K", "q3_k_m": "Q4_K", "q3_k_l": "Q5_K"}.get(mix, DEFAULT[mix])


def more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's use_more_bits: the first eighth, the last eighth and every third layer between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def heads_sharing(config: dict[str, Any]) -> int:
    """How many query heads share one key and value head."""
    heads: int = config["num_attention_heads"]
    return heads // (config.get("num_key_value_heads") or config.get("num_kv_heads") or heads)


def expert_count(config: dict[str, Any]) -> int:
    """Experts of a block, of which each token is given some; 0 where there are none."""
    names = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    return next((int(config[name]) for name in names if config.get(name)), 0)


def eight_experts(config: dict[str, Any]) -> bool:
    return expert_count(config) == 8


def is_70b(config: dict[str, Any]) -> bool:
    """What llama.cpp takes for a 70B: 80 layers of Qwen2, or of Llama with heads that share keys and values."""
    by_layers = config["model_type"] == "qwen2" or (config["model_type"] != "qwen3" and heads_sharing(config) > 1)
    return by_layers and bool(config["num_hidden_layers"] == 80)
