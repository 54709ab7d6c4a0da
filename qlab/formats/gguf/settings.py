"""What a GGUF header says of a model, in the words of a configuration: each row both ways, so that neither direction has rules of its own.

Keys are gguf-py's (`gguf.Keys`). Most settings are one value of a configuration under another name, a `Row`; the others are computed from
several, `Computed`, and computed back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np

from qlab.formats.gguf.header import Setting
from qlab.support.errors import UserError
from qlab.support.reading import LAYERS, MOST

Config = dict[str, Any]
LLM, ATTENTION, ROPE, SSM = gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope, gguf.Keys.SSM
LARGEST_FLOAT = 3e38  # of float32


class NotRead(UserError):
    """A GGUF file may be whole, but it holds a model that qlab does not read."""


@dataclass(frozen=True)
class Row:
    """The configuration's value `name`, int, float or bool, under the header's `key`."""

    name: str
    key: str
    kind: type = int


@dataclass(frozen=True)
class Computed:
    """Settings that several values of a configuration give: `to` them, by their keys, and `back` to these values."""

    to: Callable[[Config], dict[str, Any]]
    back: Callable[[Known], Config]


class Known:
    """The settings of a file's architecture, by gguf-py's keys, or their names without the architecture."""

    def __init__(
        self, settings: Mapping[str, Setting], arrays: Mapping[str, list[Any]], shapes: Mapping[str, tuple[int, ...]], kind: str
    ) -> None:
        self.settings, self.arrays, self.shapes, self.kind = settings, arrays, shapes, kind

    def full(self, name: str) -> str:
        return name.format(arch=self.kind) if name.startswith("{arch}.") else f"{self.kind}.{name}"

    def whole(self, name: str, default: int | None = None, least: int = 1, most: int = MOST) -> int:
        """A whole number within bounds.

        Raises:
            UserError: it is another value, or it is not there (or an array) and there is no default.
        """
        value = self.settings.get(self.full(name), default)
        if value is None:
            raise UserError(f"the GGUF file's header lacks {self.full(name)} as one number, which qlab needs: convert the model anew")
        if type(value) is not int or not least <= value <= most:
            raise UserError(
                f"{self.full(name)} in the GGUF file's header is {str(value)[:40]}: expected {least:,} to {most:,}; convert the model anew"
            )
        return value

    def decimal(self, name: str, default: float | None = None) -> float:
        """A float above zero, in the fewest digits that stand for the file's float32: 1e-05 and not 9.999999747e-06.

        Raises:
            UserError: it is another value, or it is not there and there is no default.
        """
        value = self.settings.get(self.full(name), default)
        if value is None:
            raise UserError(f"the GGUF file's header lacks {self.full(name)}, which qlab needs: convert the model anew")
        if not isinstance(value, (int, float)) or not 0 < value <= LARGEST_FLOAT:
            raise UserError(
                f"{self.full(name)} in the GGUF file's header is {str(value)[:40]}: expected a number above 0; convert the model anew"
            )
        return float(str(np.float32(value)))

    def list(self, name: str) -> list[Any] | None:
        """An array of a value for each block; None where it is not there.

        Raises:
            UserError: it has another number of values.
        """
        found = self.arrays.get(self.full(name))
        if found is not None and len(found) != (blocks := self.whole(LLM.BLOCK_COUNT, most=LAYERS)):
            raise UserError(
                f"{self.full(name)} in the GGUF file's header has {len(found)} values for {blocks} blocks: convert the model anew"
            )
        return found

    def text(self, name: str, default: str) -> str:
        return str(self.settings.get(self.full(name), default))

    def value(self, row: Row) -> Any:
        """The value of a row that is there.

        Raises:
            UserError: it is of another type or beyond its bounds.
        """
        if row.kind is float:
            return self.decimal(row.key)
        if row.kind is bool:
            return bool(self.settings[self.full(row.key)])
        return self.whole(row.key, least=0, most=LAYERS if row.key == LLM.BLOCK_COUNT else MOST)

    def __contains__(self, name: str) -> bool:
        return self.full(name) in self.settings


SIZES = (
    Row("max_position_embeddings", LLM.CONTEXT_LENGTH), Row("hidden_size", LLM.EMBEDDING_LENGTH),
    Row("num_hidden_layers", LLM.BLOCK_COUNT), Row("intermediate_size", LLM.FEED_FORWARD_LENGTH),
    Row("num_attention_heads", ATTENTION.HEAD_COUNT), Row("num_key_value_heads", ATTENTION.HEAD_COUNT_KV),
)  # fmt: skip
RMS, LAYER_NORM = Row("rms_norm_eps", ATTENTION.LAYERNORM_RMS_EPS, float), Row("layer_norm_eps", ATTENTION.LAYERNORM_EPS, float)
EXPERTS = (
    Row("num_experts", LLM.EXPERT_COUNT), Row("num_experts_per_tok", LLM.EXPERT_USED_COUNT),
    Row("moe_intermediate_size", LLM.EXPERT_FEED_FORWARD_LENGTH),
    Row("shared_expert_intermediate_size", LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH),
)  # fmt: skip
GROUPS = (Row("n_group", LLM.EXPERT_GROUP_COUNT), Row("topk_group", LLM.EXPERT_GROUP_USED_COUNT))
LEADING = Row("first_k_dense_replace", LLM.LEADING_DENSE_BLOCK_COUNT)
SHARED = Row("n_shared_experts", LLM.EXPERT_SHARED_COUNT)
SCALED = Row("routed_scaling_factor", LLM.EXPERT_WEIGHTS_SCALE, float)
NORMALIZED = Row("norm_topk_prob", LLM.EXPERT_WEIGHTS_NORM, bool)


def constant(key: str, value: Any) -> Computed:
    """A setting that every model of an architecture has."""
    return Computed(lambda config: {key: value}, lambda known: {})


SIGMOID = constant(LLM.EXPERT_GATING_FUNC, int(gguf.ExpertGatingFuncType.SIGMOID))
SOFTMAX = constant(LLM.EXPERT_GATING_FUNC, int(gguf.ExpertGatingFuncType.SOFTMAX))


def period(kinds: list[str], every: str) -> int | None:
    """n where every n-th block, and no other, is of the kind `every`; one more than there are blocks where none is; None otherwise."""
    first = kinds.index(every) + 1 if every in kinds else len(kinds) + 1
    return first if kinds == in_period(first, len(kinds), every, next((kind for kind in kinds if kind != every), every)) else None


def in_period(number: int, blocks: int, every: str, other: str) -> list[str]:
    """Kinds of `blocks` blocks, every n-th of them `every`."""
    return [every if (index + 1) % number == 0 else other for index in range(blocks)]


def windows(usual: int) -> Computed:
    """A window of attention in all blocks but every n-th, llama.cpp's own n where the header says nothing: `usual`."""

    def to(config: Config) -> dict[str, Any]:
        if not config.get("sliding_window"):
            return {}
        found: dict[str, Any] = {ATTENTION.SLIDING_WINDOW: int(config["sliding_window"])}
        kinds, blocks = config.get("layer_types"), config["num_hidden_layers"]
        if kinds and kinds != in_period(usual, blocks, "full_attention", "sliding_attention"):
            found[ATTENTION.SLIDING_WINDOW_PATTERN] = period(kinds, "full_attention")
        return found

    def back(known: Known) -> Config:
        blocks = known.whole(LLM.BLOCK_COUNT, most=LAYERS)
        if not (window := known.whole(ATTENTION.SLIDING_WINDOW, 0, least=0)):
            return {"sliding_window": None, "layer_types": ["full_attention"] * blocks}
        if (pattern := known.list(ATTENTION.SLIDING_WINDOW_PATTERN)) is not None:
            kinds = ["sliding_attention" if slides else "full_attention" for slides in pattern]
        else:
            number = known.whole(ATTENTION.SLIDING_WINDOW_PATTERN, usual)
            kinds = in_period(number, blocks, "full_attention", "sliding_attention")
        return {"sliding_window": window, "layer_types": kinds}

    return Computed(to, back)


def latent_to(config: Config) -> dict[str, Any]:
    """DeepSeek's attention, as llama.cpp computes it: one head of keys and values as wide as what is cached, unfolded for each query."""
    cached, turned = config["kv_lora_rank"], config["qk_rope_head_dim"]
    return {
        ATTENTION.HEAD_COUNT_KV: 1, ATTENTION.KEY_LENGTH: cached + turned, ATTENTION.VALUE_LENGTH: cached,
        ATTENTION.KEY_LENGTH_MLA: config["qk_nope_head_dim"] + turned, ATTENTION.VALUE_LENGTH_MLA: config["v_head_dim"],
        ROPE.DIMENSION_COUNT: turned,
    }  # fmt: skip


def latent_back(known: Known) -> Config:
    turned = known.whole(ROPE.DIMENSION_COUNT)
    return {
        "num_key_value_heads": known.whole(ATTENTION.HEAD_COUNT), "qk_rope_head_dim": turned, "head_dim": turned,
        "qk_nope_head_dim": known.whole(ATTENTION.KEY_LENGTH_MLA) - turned, "v_head_dim": known.whole(ATTENTION.VALUE_LENGTH_MLA),
        "q_lora_rank": known.whole(ATTENTION.Q_LORA_RANK, 0, least=0) or None,
    }  # fmt: skip


LATENT = Computed(latent_to, latent_back)


ATTENDING = ("full_attention", "attention")  # transformers' name for a block with attention, and an older one


def mixers(other: str) -> Computed:
    """Heads of keys and values for each block: none in those of the kind `other`, which mix tokens by something else than attention."""

    def to(config: Config) -> dict[str, Any]:
        heads = config.get("num_key_value_heads") or config["num_attention_heads"]
        return {ATTENTION.HEAD_COUNT_KV: [heads if kind in ATTENDING else 0 for kind in config["layer_types"]]}

    def back(known: Known) -> Config:
        heads = known.list(ATTENTION.HEAD_COUNT_KV) or [0]
        return {"num_key_value_heads": max(heads), "layer_types": [ATTENDING[0] if number else other for number in heads]}

    return Computed(to, back)


def gated_delta_to(config: Config) -> dict[str, Any]:
    """Qwen3-Next's linear attention, in blocks between those with attention."""
    return {
        SSM.INNER_SIZE: config["linear_value_head_dim"] * config["linear_num_value_heads"],
        LLM.FULL_ATTENTION_INTERVAL: period(config["layer_types"], "full_attention"),
    }


def gated_delta_back(known: Known) -> Config:
    blocks, number = known.whole(LLM.BLOCK_COUNT, most=LAYERS), known.whole(LLM.FULL_ATTENTION_INTERVAL, 4)
    return {
        "linear_value_head_dim": known.whole(SSM.INNER_SIZE) // known.whole(SSM.TIME_STEP_RANK),
        "layer_types": in_period(number, blocks, "full_attention", "linear_attention"),
    }


GATED_DELTA = Computed(gated_delta_to, gated_delta_back)
GATED_DELTA_ROWS = (
    Row("linear_conv_kernel_dim", SSM.CONV_KERNEL), Row("linear_key_head_dim", SSM.STATE_SIZE),
    Row("linear_num_key_heads", SSM.GROUP_COUNT), Row("linear_num_value_heads", SSM.TIME_STEP_RANK),
)  # fmt: skip
MAMBA = Computed(
    lambda config: {
        SSM.INNER_SIZE: config["mamba_n_heads"] * config["mamba_d_head"],
        ROPE.SCALING_FINETUNED: config.get("position_embedding_type") == "rope",  # llama.cpp's word for whether positions turn anything
    },
    lambda known: {
        "mamba_d_head": known.whole(SSM.INNER_SIZE) // known.whole(SSM.TIME_STEP_RANK),
        "position_embedding_type": "rope" if known.settings.get(known.full(ROPE.SCALING_FINETUNED), True) else None,
    },
)
MAMBA_ROWS = (
    Row("mamba_d_conv", SSM.CONV_KERNEL), Row("mamba_d_state", SSM.STATE_SIZE), Row("mamba_n_groups", SSM.GROUP_COUNT),
    Row("mamba_n_heads", SSM.TIME_STEP_RANK),
)  # fmt: skip
SHARED_WIDTH = Computed(  # of experts that see every token, together
    lambda config: {LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH: config["moe_intermediate_size"] * config["moe_num_shared_experts"]},
    lambda known: {},
)
