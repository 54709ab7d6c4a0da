"""From a GGUF header back to a Hugging Face configuration: the inverse of metadata.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from qlab.formats.gguf import metadata
from qlab.formats.gguf.header import Setting
from qlab.support.errors import UserError
from qlab.support.reading import LAYERS, MOST

READ = ("llama", "qwen2", "qwen3", "qwen2moe", "qwen3moe")
CLASSES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM", "qwen2_moe": "Qwen2MoeForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM",
}  # fmt: skip
MIXTURES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}
LARGEST_FLOAT = 3e38  # of float32
NEAR = 1e-5  # of Llama 3's factors, which writers compute in float32
SPECIAL = ("bos", "eos", "padding")


def model_config(settings: Mapping[str, Setting], shapes: Mapping[str, tuple[int, ...]], rope_factors: Tensor | None) -> dict[str, Any]:
    """config.json of the model in a GGUF file, in FP16.

    Args:
        settings: of the header.
        shapes: of its tensors, by their GGUF names.
        rope_factors: rope_freqs.weight, what divides each rotary frequency, float32 [head size / 2]; None to leave them out.

    Raises:
        UserError: an architecture that qlab does not read, or a header that lacks what it needs.
    """
    kind = str(settings.get("general.architecture"))
    if kind not in READ:
        raise UserError(
            f"the GGUF file holds a {kind} model; qlab reads those of {', '.join(READ)}: give it the Hugging Face model instead"
        )
    known = Known(settings, kind)
    experts = known.whole("expert_count", 0, least=0)
    if bool(experts) != ("blk.0.ffn_gate_exps.weight" in shapes) or (bool(experts) != (kind in MIXTURES) and kind != "llama"):
        raise UserError(
            "the GGUF file holds a mixture of experts of a kind that qlab does not read from GGUF: give it the Hugging Face model instead"
        )
    embedding = shapes.get("token_embd.weight")
    if embedding is None or len(embedding) != 2:
        raise UserError("the GGUF file has no token_embd.weight: it is not a whole language model (a part, a projector or an adapter)")
    heads = known.whole("attention.head_count")
    width = known.whole("attention.key_length", known.whole("embedding_length") // heads)
    if known.whole("rope.dimension_count", width) != width:
        raise UserError("the GGUF file turns a part of each head only (rope.dimension_count), which qlab does not read")
    window = known.whole("attention.sliding_window", 0, least=0)
    dense = "mistral" if kind == "llama" and window else kind
    family = MIXTURES.get(kind, "mixtral") if experts else dense
    config: dict[str, Any] = {
        "architectures": [CLASSES[family]],
        "model_type": family,
        "vocab_size": embedding[0],
        "hidden_size": known.whole("embedding_length"),
        "intermediate_size": known.whole("feed_forward_length"),
        "num_hidden_layers": known.whole("block_count", most=LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": known.whole("attention.head_count_kv", heads),
        "head_dim": width,
        "hidden_act": "silu",
        "max_position_embeddings": known.whole("context_length"),
        "rms_norm_eps": known.decimal("attention.layer_norm_rms_epsilon"),
        "rope_parameters": rope_parameters(known, width, rope_factors),
        "tie_word_embeddings": "output.weight" not in shapes,
        "dtype": "float16",
    }
    if kind in ("llama", "qwen3", "qwen3moe") and family != "mixtral":
        config["attention_bias"] = any(f"blk.0.attn_{part}.bias" in shapes for part in ("q", "k", "v", "output"))
    if family == "llama":
        config["mlp_bias"] = "blk.0.ffn_down.bias" in shapes
    if experts:
        config |= expert_sizes(known, family, experts)
    if window:
        config |= {"sliding_window": window} | ({"use_sliding_window": True, "max_window_layers": 0} if kind != "llama" else {})
    elif family in ("mistral", "mixtral"):
        config["sliding_window"] = None
    for name in SPECIAL:
        if (token := settings.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            if type(token) is not int or not 0 <= token <= MOST:
                raise UserError(f"tokenizer.ggml.{name}_token_id in the GGUF file's header is {str(token)[:40]}: expected a token's number")
            config[f"{'pad' if name == 'padding' else name}_token_id"] = token
    return config


def expert_sizes(known: Known, family: str, experts: int) -> dict[str, Any]:
    """How many experts there are, how many of them a token is given to, and how wide they are.

    Raises:
        UserError: a size is missing.
    """
    chosen: dict[str, Any] = {"num_experts_per_tok": known.whole("expert_used_count", most=experts)}
    if family == "mixtral":
        return chosen | {"num_local_experts": experts}
    sizes = chosen | {"num_experts": experts, "moe_intermediate_size": known.whole("expert_feed_forward_length")}
    sizes |= {"norm_topk_prob": family == "qwen3_moe", "decoder_sparse_step": 1, "mlp_only_layers": []}
    if family == "qwen2_moe":
        sizes["shared_expert_intermediate_size"] = known.whole("expert_shared_feed_forward_length")
    return sizes


def check_sizes(settings: Mapping[str, Setting], kind: str) -> None:
    """See that the sizes of an architecture are there, and sizes, before transformers computes with them or fills in its own.

    Raises:
        UserError: one is not.
    """
    known = Known(settings, kind)
    for name in ("block_count", "embedding_length"):
        known.whole(name)
    for name, value in settings.items():
        if name.startswith(f"{kind}.") and type(value) is int:
            inner = name.removeprefix(f"{kind}.")
            known.whole(inner, least=0, most=LAYERS if inner == "block_count" else MOST)


class Known:
    """The settings of one architecture, by their names without it."""

    def __init__(self, settings: Mapping[str, Setting], kind: str) -> None:
        self.settings, self.kind = settings, kind

    def whole(self, name: str, default: int | None = None, least: int = 1, most: int = MOST) -> int:
        """A whole number within bounds.

        Raises:
            UserError: it is another value, or it is not there (or an array) and there is no default.
        """
        value = self.settings.get(f"{self.kind}.{name}", default)
        if value is None:
            raise UserError(f"the GGUF file's header lacks {self.kind}.{name} as one number, which qlab needs: convert the model anew")
        if type(value) is not int or not least <= value <= most:
            raise UserError(
                f"{self.kind}.{name} in the GGUF file's header is {str(value)[:40]}: expected {least:,} to {most:,}; convert the model anew"
            )
        return value

    def decimal(self, name: str, default: float | None = None) -> float:
        """A float above zero, in the fewest digits that stand for the file's float32: 1e-05 and not 9.999999747e-06.

        Raises:
            UserError: it is another value, or it is not there and there is no default.
        """
        value = self.settings.get(f"{self.kind}.{name}", default)
        if value is None:
            raise UserError(f"the GGUF file's header lacks {self.kind}.{name}, which qlab needs: convert the model anew")
        if not isinstance(value, (int, float)) or not 0 < value <= LARGEST_FLOAT:
            raise UserError(
                f"{self.kind}.{name} in the GGUF file's header is {str(value)[:40]}: expected a number above 0; convert the model anew"
            )
        return float(str(np.float32(value)))

    def text(self, name: str, default: str) -> str:
        return str(self.settings.get(f"{self.kind}.{name}", default))

    def __contains__(self, name: str) -> bool:
        return f"{self.kind}.{name}" in self.settings


def rope_parameters(known: Known, width: int, factors: Tensor | None) -> dict[str, Any]:
    """transformers' description of the rotary embedding.

    Raises:
        UserError: a kind that qlab does not read.
    """
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": known.decimal("rope.freq_base", 10000.0)}
    kind = known.text("rope.scaling.type", "linear" if "rope.scale_linear" in known else "none")
    if factors is not None:
        if kind != "none":
            raise UserError(f"the GGUF file has rotary factors (rope_freqs) and {kind} scaling as well, which qlab does not read")
        return llama3_parameters(rope, width, factors)
    if kind == "none":
        return rope
    factor = known.decimal("rope.scaling.factor", known.decimal("rope.scale_linear", 1.0))
    if kind == gguf.RopeScalingType.LINEAR.value:
        return rope | {"rope_type": "linear", "factor": factor}
    if kind == gguf.RopeScalingType.YARN.value:
        length = known.whole("rope.scaling.original_context_length", known.whole("context_length"))
        rope |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": length}
        for name, key in (("attn", "attention_factor"), ("beta", "beta_fast"), ("beta", "beta_slow")):
            stored = "rope.scaling.yarn_attn_factor" if name == "attn" else f"rope.scaling.yarn_{key}"
            if stored in known:
                rope[key] = known.decimal(stored)
        return rope
    raise UserError(f"the GGUF file's rotary embedding is scaled by {kind}, which qlab does not read; it reads linear, yarn and Llama 3's")


def llama3_parameters(rope: dict[str, Any], width: int, factors: Tensor) -> dict[str, Any]:
    """The rotary embedding whose frequencies are divided by `factors`: Llama 3's kind where some limits give them, else their list.

    GGUF keeps the factors and not what they were computed from: a factor for long waves, and two limits between which 1/factor grows
    linearly with the frequency. Two factors between the limits tell these; the published ones are tried first. What no limits give
    becomes a "longrope" whose short and long factors are these.
    """
    for guess in (published(factors), solved(rope["rope_theta"], width, factors)):
        if guess is None:
            continue
        found = rope | {"rope_type": "llama3"} | guess
        again = metadata.rope_factors({"head_dim": width, "rope_parameters": found})
        if again is not None and torch.allclose(again, factors.float(), rtol=NEAR, atol=0):
            return found
    listed = [float(str(np.float32(factor))) for factor in factors.tolist()]
    return rope | {
        "rope_type": "longrope", "short_factor": listed, "long_factor": listed, "attention_factor": 1.0, "factor": 1.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip


def published(factors: Tensor) -> dict[str, Any]:
    """The limits of Llama 3.1, 3.2 and 3.3."""
    limits = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return limits | {"factor": float(str(np.float32(factors.max())))}


def solved(theta: float, width: int, factors: Tensor) -> dict[str, Any] | None:
    """The limits that two factors between them tell, the lower one taken as 1; None where there are no two."""
    largest = float(str(np.float32(factors.max())))
    kept = 1 / factors.double()
    between = ((factors > 1) & (factors < factors.max())).nonzero().flatten()
    if len(between) < 2:
        return None
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width) / (2 * torch.pi)
    smooth = (kept - 1 / largest) / (1 - 1 / largest)  # = (length · frequency − low) / (high − low)
    first, last = int(between[0]), int(between[-1])
    slope = float((smooth[first] - smooth[last]) / (frequencies[first] - frequencies[last]))
    offset = slope * float(frequencies[first]) - float(smooth[first])
    if slope <= 0 or offset <= 0:
        return None
    high = 1 + 1 / offset
    return {
        "factor": largest, "low_freq_factor": 1.0, "high_freq_factor": float(f"{high:.4g}"),
        "original_max_position_embeddings": round(slope * (high - 1)),
    }  # fmt: skip
