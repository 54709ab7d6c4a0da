"""A model's sizes and its rotary embedding under GGUF's names (llama.cpp's conversion/base.py and conversion/llama.py)."""

from __future__ import annotations

import math
from typing import Any

import gguf
import torch
from torch import Tensor

from qlab.formats.gguf import settings as rows
from qlab.formats.gguf.architectures import ARCHITECTURES, UNLIKE, Architecture, standard
from qlab.formats.gguf.mix import FILE_TYPES
from qlab.formats.gguf.settings import ATTENTION, LLM, ROPE, Config
from qlab.formats.gguf.variants import head_size
from qlab.support.errors import UserError

YARN = {
    "attention_factor": ROPE.SCALING_YARN_ATTN_FACTOR, "beta_fast": ROPE.SCALING_YARN_BETA_FAST, "beta_slow": ROPE.SCALING_YARN_BETA_SLOW,
    "llama_4_scaling_beta": ATTENTION.TEMPERATURE_SCALE,
}  # fmt: skip
# Types whose attention has a window that llama.cpp's has not: in all blocks, with transformers' default; where the configuration says so.
WINDOWED = {"mistral": 4096, "mixtral": None, "phi3": None, "starcoder2": None}
WINDOWED_IF_SAID = ("qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "smollm3")
VALUES = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32, str: gguf.GGUFValueType.STRING}


def described(config: dict[str, Any]) -> Architecture:
    """llama.cpp's architecture for the model, with what it takes.

    Raises:
        UserError: a model type that this writer does not know, or a variant of one that llama.cpp would run wrongly.
    """
    kind = config["model_type"]
    if why := UNLIKE.get(kind):
        raise UserError(unlike(kind, why))
    if kind not in ARCHITECTURES:
        raise UserError(f"no GGUF writer for model type {kind!r}: expected one of {', '.join(ARCHITECTURES)}")
    found = ARCHITECTURES[kind]
    stated = (config.get(name) for name in ("hidden_activation", "hidden_act", "activation"))
    activation = next((name for name in stated if name), found.activations[0])
    if activation not in found.activations:
        raise UserError(f"llama.cpp's {kind} models compute {found.activations[0]}, this one {activation}: it cannot be written as GGUF")
    rope_type(config)
    fixed = (f"{name} is {value} there" for name, value in found.fixed.items() if (config.get(name, value) or None) != (value or None))
    if why := next(fixed, "") or found.differs(config):
        raise UserError(unlike(kind, why))
    return found


def unlike(kind: str, why: str) -> str:
    return f"llama.cpp would run this {kind} model as another function ({why}): it cannot be written as GGUF"


def architecture(config: dict[str, Any]) -> gguf.MODEL_ARCH:
    """GGUF's architecture for the model.

    Raises:
        UserError: see described.
    """
    return described(config).arch


def add_configuration(writer: gguf.GGUFWriter, config: Config, mix: str) -> None:
    """The model's sizes, the mix and the rotary embedding."""
    writer.add_file_type(FILE_TYPES[mix])
    for key, value in settings_of(config).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, VALUES[type(value)])
    if mix != "f16":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def settings_of(config: Config) -> dict[str, Any]:
    """What the header says of a model: int, float, bool, string or list of integers by key.

    Raises:
        UserError: see described.
    """
    form, usual = described(config), standard(config)
    size = head_size(usual)
    eps = rows.RMS if usual.get("rms_norm_eps") is not None else rows.LAYER_NORM
    experts = [row for row in rows.EXPERTS if usual.get("num_experts") and usual.get(row.name)]
    found: dict[str, Any] = {row.key: row.kind(usual[row.name]) for row in rows.SIZES}
    found |= {eps.key: float(usual.get(eps.name, 1e-5))}
    if form.turned:
        found[ROPE.DIMENSION_COUNT] = int(size * turned_part(config))
    found |= {ATTENTION.KEY_LENGTH: size, ATTENTION.VALUE_LENGTH: size, LLM.VOCAB_SIZE: usual["vocab_size"]}
    found |= {row.key: row.kind(usual[row.name]) for row in (*form.rows, *experts) if usual.get(row.name) is not None}
    for computed in form.computed:
        found |= computed.to(usual)
    found |= rope_settings(config) if form.turned else {}
    return {key.format(arch=gguf.MODEL_ARCH_NAMES[form.arch]): value for key, value in found.items()}


def rope_settings(config: Config) -> dict[str, Any]:
    """The rotary embedding's base, how it is stretched beyond the length of training, and which positions turn which part of it."""
    rope, kind = rope_parameters(config), rope_type(config)
    found: dict[str, Any] = {ROPE.FREQ_BASE: float(rope["rope_theta"])}
    local = (config.get("rope_parameters") or {}).get("sliding_attention", {}).get("rope_theta") or config.get("rope_local_base_freq")
    if local:
        found[ROPE.FREQ_BASE_SWA] = float(local)
    if sections := rope.get("mrope_section"):  # of time, height and width, and one that is free
        found[ROPE.DIMENSION_SECTIONS] = [*sections, 0, 0, 0][:4]
    if kind in ("linear", "yarn"):
        found |= {ROPE.SCALING_TYPE: kind, ROPE.SCALING_FACTOR: float(rope["factor"])}
    if kind == "yarn":
        found[ROPE.SCALING_ORIG_CTX_LEN] = int(rope.get("original_max_position_embeddings") or config["max_position_embeddings"])
        found |= {key: float(rope[name]) for name, key in YARN.items() if rope.get(name) is not None}
        if rope.get("mscale_all_dim") and (multiplier := ARCHITECTURES[config["model_type"]].log_multiplier):
            found[ROPE.SCALING_YARN_LOG_MUL] = multiplier * rope["mscale_all_dim"]
    return found


def rope_factors(config: dict[str, Any]) -> Tensor | None:
    """Llama 3's rotary scaling: what to divide each frequency by, float32 [head size / 2]; None for other kinds.

    Long waves are stretched by the factor, short ones stay, and between the two limits it passes smoothly from one to the other.
    """
    rope, size = rope_parameters(config), head_size(config)
    if rope["rope_type"] != "llama3":
        return None
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
        kind = str(given.get("rope_type") or given.get("type") or parameters["rope_type"])
        parameters["rope_type"] = "default" if kind == "mrope" else kind  # of a text alone, places in an image are those in the text
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
    found = ARCHITECTURES[config["model_type"]]
    if kind == "yarn" and rope.get("mscale") != rope.get("mscale_all_dim") and found.log_multiplier:
        raise UserError("no GGUF writer for YaRN whose mscale is another than mscale_all_dim")
    if turned_part(config) != 1 and not found.partly:
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
    kind, layers, window = config["model_type"], config.get("layer_types"), None
    if kind in WINDOWED:
        window = config.get("sliding_window", WINDOWED[kind])
    elif kind in WINDOWED_IF_SAID and config.get("use_sliding_window"):
        used = "sliding_attention" in layers if layers else config.get("max_window_layers", 28) < config["num_hidden_layers"]
        window = config.get("sliding_window", 4096) if used or kind == "qwen3_moe" else None
    return int(window) if window and window < config["max_position_embeddings"] else None
