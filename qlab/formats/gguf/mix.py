"""Which tensor gets which type: llama.cpp's mixes, by the rules of llama-quant.cpp (llama_tensor_get_type), those for Falcon alone apart.

A mix has one type for most tensors and spends more bits where they are few or matter most: on the output (or the embedding that
serves as one), on attention's values, on the MLP's down projection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gguf

from qlab.methods.kquants.kinds import KINDS
from qlab.support.errors import UserError

# Each mix's type for most tensors, and its number in the file's header.
DEFAULT = {
    "f16": "F16", "q8_0": "Q8_0", "q6_k": "Q6_K", "q5_k_m": "Q5_K", "q5_k_s": "Q5_K", "q4_k_m": "Q4_K", "q4_k_s": "Q4_K", "q3_k_l": "Q3_K",
    "q3_k_m": "Q3_K", "q2_k": "Q2_K", "q2_k_s": "Q2_K", "iq4_nl": "IQ4_NL", "iq4_xs": "IQ4_XS",
}  # fmt: skip
MORE_BITS = ("q4_k_m", "q5_k_m")  # mixes that spend Q6_K on every third block or so
SPARING = {"q2_k_s": "Q4_K", "iq4_nl": "Q5_K", "iq4_xs": "Q5_K"}  # what few key and value heads, and the first down projections, get
FILE_TYPES = {mix: gguf.LlamaFileType[f"MOSTLY_{mix.upper()}"] for mix in DEFAULT}
KEPT = ("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "ssm_conv1d.weight", "shortconv.conv.weight")  # in FP32
# Rows that superblocks of 256 do not divide get blocks of 32 (tensor_type_fallback).
FALLBACK = {"IQ4_XS": "IQ4_NL", "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
TYPES = (*KINDS, "F16", "F32")


@dataclass(frozen=True)
class Mix:
    """A mix by its name, and what of it is asked for otherwise; as llama.cpp's --tensor-type, --output-tensor-type and
    --token-embedding-type have it.

    `tensor_types`: (pattern, type), for tensors whose GGUF name has a place that the regular expression fits; the first that fits counts.
    `output_type`, `embedding_type`: of these two, empty for the mix's own; of an embedding that serves as the output, the latter counts.
    `weighed`: whether there is an importance matrix, without which the IQ4 mixes spend more on the first down projections.
    """

    name: str
    tensor_types: tuple[tuple[str, str], ...] = ()
    output_type: str = ""
    embedding_type: str = ""
    weighed: bool = True

    @property
    def asked(self) -> tuple[str, ...]:
        """The types that are asked for."""
        return tuple(kind for kind in (*(kind for _, kind in self.tensor_types), self.output_type, self.embedding_type) if kind)

    def asked_type(self, name: str, config: dict[str, Any]) -> str:
        """The type that is asked for the tensor of this GGUF name; empty where none is."""
        if name == EMBEDDING and self.embedding_type:
            return self.embedding_type
        if self.output_type and (name == OUTPUT or (name == EMBEDDING and config.get("tie_word_embeddings", False))):
            return self.output_type
        return next((kind for pattern, kind in self.tensor_types if re.search(pattern, name)), "")


def check_types(mix: Mix, shapes: Mapping[str, Sequence[int]], config: dict[str, Any]) -> None:
    """See that the types asked for are such that the model's tensors, by their GGUF names, can have them, and each pattern fits one.

    Raises:
        UserError: they are not; it names the tensor and the types that it can have.
    """
    for kind in mix.asked:
        if kind not in TYPES:
            raise UserError(f"there is no tensor type {kind!r} here: expected one of {', '.join(TYPES)}")
    typed = {name: shape for name, shape in shapes.items() if has_type(name, shape)}
    for pattern, _ in mix.tensor_types:
        try:
            fits = any(re.search(pattern, name) for name in typed)
        except re.error as error:
            raise UserError(f"the pattern {pattern!r} of --tensor-type is no regular expression: {error}") from error
        if not fits:
            raise UserError(
                f"the pattern {pattern!r} of --tensor-type fits none of the model's {len(typed)} tensors that have a type to choose: "
                f"expected part of a GGUF name such as {next((name for name in typed if name.startswith('blk.')), EMBEDDING)}"
            )
    for name, shape in typed.items():
        kind = mix.asked_type(name, config)
        if kind in KINDS and shape[-1] % KINDS[kind].block:
            able = [each for each in TYPES if each not in KINDS or not shape[-1] % KINDS[each].block]
            raise UserError(
                f"{name} cannot be {kind}: blocks of {KINDS[kind].block} do not divide its rows of {shape[-1]} weights. Expected one of "
                f"{', '.join(able)}"
            )


def check_mix(mix: str) -> None:
    """Raise a UserError unless `mix` is known."""
    if mix not in DEFAULT:
        raise UserError(f"no GGUF mix {mix!r}: expected one of {', '.join(DEFAULT)}")


def tensor_type(name: str, shape: Sequence[int], mix: Mix, config: dict[str, Any]) -> str:
    """The GGML type that the mix gives the tensor with this GGUF name and shape, in a model of this configuration.

    Raises:
        UserError: an unknown mix.
    """
    check_mix(mix.name)
    if not has_type(name, shape):
        return "F32"
    if asked := mix.asked_type(name, config):
        return asked
    if mix.name == "f16":
        return "F16"
    return fitting(wanted_type(name, mix, config), shape[-1])


def has_type(name: str, shape: Sequence[int]) -> bool:
    """Whether the tensor has a type to choose; norms, biases, routers and what is small stay in FP32."""
    return len(shape) > 1 and name.endswith(".weight") and not name.endswith(KEPT)


def fitting(kind: str, columns: int) -> str:
    """The type itself, or what llama.cpp falls back to where its blocks do not divide the row."""
    if columns % KINDS[kind].block:
        kind = FALLBACK.get(kind, kind)
    return "F16" if columns % KINDS[kind].block else kind


def fallback_note(name: str, shape: Sequence[int], mix: Mix, config: dict[str, Any]) -> str:
    """What type the tensor got instead of the one that the mix has for it, and why; empty where it got that one."""
    if not has_type(name, shape) or mix.name == "f16" or mix.asked_type(name, config):
        return ""
    given, wanted = tensor_type(name, shape, mix, config), wanted_type(name, mix, config)
    if given == wanted:
        return ""
    block = KINDS[FALLBACK.get(wanted, wanted) if given == "F16" else wanted].block
    return f"{given} instead of {wanted}, since blocks of {block} do not divide rows of {shape[-1]} weights"


def wanted_type(name: str, mix: Mix, config: dict[str, Any]) -> str:
    """The type by the tensor's part in the model, before any fallback."""
    default = DEFAULT[mix.name]
    if name == OUTPUT or (name == EMBEDDING and config.get("tie_word_embeddings", False)):
        return "Q8_0" if default == "Q8_0" else "Q6_K"
    if mix.name == "q8_0" or not name.startswith("blk."):
        return default
    layer, part = int(name.split(".")[1]), name.split(".")[2]
    if part in ("attn_v", "attn_qkv", "attn_kv_b"):
        return value_type(layer, mix.name, config)
    if part == "attn_k" and eight_experts(config):
        return "Q8_0"
    if part.startswith("ffn_down"):
        return down_type(layer, mix, config["num_hidden_layers"])
    if part == "attn_output":
        return attention_output_type(mix.name, config)
    return default


def value_type(layer: int, mix: str, config: dict[str, Any]) -> str:
    """The type of attention's value projection, and of one that holds it too: small where heads share it, and sensitive."""
    if eight_experts(config):
        return "Q8_0"
    kind = DEFAULT[mix]
    if mix == "q2_k":
        kind = "Q4_K" if heads_sharing(config) >= 4 else "Q3_K"
    elif mix in SPARING and heads_sharing(config) >= 4:
        kind = SPARING[mix]
    elif mix == "q3_k_l":
        kind = "Q5_K"
    elif mix == "q3_k_m":
        kind = "Q5_K" if layer < 2 else "Q4_K"
    elif mix == "q4_k_s":
        kind = "Q5_K" if layer < 4 else "Q4_K"
    elif mix in MORE_BITS and more_bits(layer, config["num_hidden_layers"]):
        kind = "Q6_K"
    return "Q5_K" if is_70b(config) and kind in ("Q3_K", "Q4_K") else kind


def down_type(layer: int, mix: Mix, layers: int) -> str:
    """The type of the MLP's down projection."""
    name, early = mix.name, layer < layers // 8
    if name in SPARING:
        return SPARING[name] if early and (name == "q2_k_s" or not mix.weighed) else DEFAULT[name]
    if name == "q2_k":
        return "Q3_K"
    if name == "q3_k_l":
        return "Q5_K"
    if name == "q3_k_m":
        return "Q5_K" if layer < layers // 16 else "Q4_K"
    if name == "q4_k_s":
        return "Q5_K" if early else "Q4_K"
    return "Q6_K" if name in MORE_BITS and more_bits(layer, layers) else DEFAULT[name]


def attention_output_type(mix: str, config: dict[str, Any]) -> str:
    """The type of attention's output projection."""
    if eight_experts(config) and mix in ("q2_k", "q3_k_m", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs"):
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
