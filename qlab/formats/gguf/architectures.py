"""The model types that are written as GGUF: which of llama.cpp's architectures computes each, and what it takes from the configuration.

Names of tensors and keys are gguf-py's. What llama.cpp has built in and a file cannot say is held against the configuration here: a model
that wants another value is refused, since llama.cpp would compute another function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf

ARCH = gguf.MODEL_ARCH
Config = dict[str, Any]
TANH = ("gelu_pytorch_tanh", "gelu_new")


@dataclass(frozen=True)
class Architecture:
    """llama.cpp's architecture `arch`.

    `activations`: that it computes. `turned`: whether rows of queries and keys come in the order of an interleaved rotary embedding;
    `offset`: what the family's norms add to their weights. `keys`: a configuration's name and gguf-py's method that writes it. `differs`:
    what llama.cpp would compute otherwise, empty where nothing.
    """

    arch: gguf.MODEL_ARCH
    activations: tuple[str, ...] = ("silu",)
    turned: bool = False
    offset: float = 0.0
    keys: tuple[tuple[str, str], ...] = ()
    differs: Callable[[Config], str] = lambda config: ""


def normalized(expected: bool) -> Callable[[Config], str]:
    """llama.cpp divides the chosen experts' weights by their sum, or does not, and has experts in every block."""

    def differs(config: Config) -> str:
        if bool(config.get("norm_topk_prob", False)) != expected:
            return f"norm_topk_prob is {expected} there"
        every = not config.get("mlp_only_layers") and config.get("decoder_sparse_step", 1) == 1
        return "" if every else "every block has experts there"

    return differs


def pattern(every: int) -> Callable[[Config], str]:
    """Every so manyth block attends to all tokens, the others to a window; attention is scaled by the size of a head."""

    def differs(config: Config) -> str:
        layers, head = config["num_hidden_layers"], config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        kinds = ["full_attention" if (index + 1) % every == 0 else "sliding_attention" for index in range(layers)]
        if config.get("layer_types", kinds) != kinds:
            return f"one block in {every} attends to all tokens there"
        scale = config.get("query_pre_attn_scalar", head)
        return "" if scale == head or layers == 46 else f"attention is scaled by heads of {head} there, not {scale}"  # 46: Gemma 2 27B

    return differs


def olmoe(config: Config) -> str:
    if config.get("num_key_value_heads") not in (None, config["num_attention_heads"]):
        return "every head has keys and values of its own there"
    return normalized(False)(config)


def smollm3(config: Config) -> str:
    kinds = [int((index + 1) % 4 != 0) for index in range(config["num_hidden_layers"])]
    return "" if config.get("no_rope_layers", kinds) == kinds else "every fourth block has no rotary embedding there"


def without(*names: str) -> Callable[[Config], str]:
    """Options that llama.cpp does not have."""
    return lambda config: next((f"there is no {name} there" for name in names if config.get(name)), "")


GEMMA = (("attn_logit_softcapping", "add_attn_logit_softcapping"), ("final_logit_softcapping", "add_final_logit_softcapping"))
WINDOW = (("sliding_window", "add_sliding_window"),)
GRANITE = (
    ("logits_scaling", "add_logit_scale"), ("embedding_multiplier", "add_embedding_scale"),
    ("residual_multiplier", "add_residual_scale"), ("attention_multiplier", "add_attention_scale"),
)  # fmt: skip
ARCHITECTURES = {
    "llama": Architecture(ARCH.LLAMA, turned=True),
    "mistral": Architecture(ARCH.LLAMA, turned=True),
    "qwen2": Architecture(ARCH.QWEN2),
    "qwen3": Architecture(ARCH.QWEN3),
    "mixtral": Architecture(ARCH.LLAMA, turned=True),
    "qwen2_moe": Architecture(ARCH.QWEN2MOE, differs=normalized(False)),
    "qwen3_moe": Architecture(ARCH.QWEN3MOE, differs=normalized(True)),
    "olmoe": Architecture(ARCH.OLMOE, differs=olmoe),
    "granitemoe": Architecture(ARCH.GRANITE_MOE, turned=True, keys=GRANITE),
    "gpt_oss": Architecture(ARCH.GPT_OSS, keys=(*WINDOW, ("intermediate_size", "add_expert_feed_forward_length")), differs=pattern(2)),
    "gemma": Architecture(ARCH.GEMMA, TANH, offset=1.0),
    "gemma2": Architecture(ARCH.GEMMA2, TANH, offset=1.0, keys=GEMMA + WINDOW, differs=pattern(2)),
    "gemma3_text": Architecture(ARCH.GEMMA3, TANH, offset=1.0, keys=GEMMA + WINDOW, differs=pattern(6)),
    "phi3": Architecture(ARCH.PHI3),
    "olmo2": Architecture(ARCH.OLMO2),
    "smollm3": Architecture(ARCH.SMOLLM3, turned=True, differs=smollm3),
    "granite": Architecture(ARCH.GRANITE, turned=True, keys=GRANITE),
    "glm4": Architecture(ARCH.GLM4),
    "cohere": Architecture(ARCH.COMMAND_R, keys=(("logit_scale", "add_logit_scale"),), differs=without("use_qk_norm")),
    "starcoder2": Architecture(ARCH.STARCODER2, TANH),
    "stablelm": Architecture(ARCH.STABLELM, keys=(("use_parallel_residual", "add_parallel_residual"),), differs=without("qk_layernorm")),
}
