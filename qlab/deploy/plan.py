"""The memory planner: what a model takes in each format, with its context, and what hardware holds that.

GB are decimal (10⁹ bytes), as vendors and the guide count them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from qlab import DATA

GB = 1e9
# Bits a weight of the decoder's linear layers, with scales and zero points; embedding and head beside them.
# Grouped integers at 128: 4 bits, an FP16 scale and a 4-bit zero point a group. Q4_K_M: mostly Q4_K, a third Q6_K.
FORMATS = {
    "FP32": (32.0, 32.0),
    "FP16": (16.0, 16.0),
    "INT8": (8 + 24 / 128, 16.0),
    "AWQ/GPTQ INT4 g128": (4 + 20 / 128, 16.0),
    "GGUF Q4_K_M": (4.83, 5.53),
    "NF4 double quant": (4 + 8 / 64 + 32 / (64 * 256), 16.0),
    "INT3 g128": (3 + 19 / 128, 16.0),
    "INT2 g128": (2 + 18 / 128, 16.0),
}


@dataclass(frozen=True)
class Shape:
    """The sizes of a dense decoder that decide its memory."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool = False

    @property
    def linear_parameters(self) -> int:
        """Weights in the decoder blocks' linear layers: q, k, v, o, gate, up, down."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self.embedding_parameters

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of every layer in FP16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_size


SHAPES = {  # as published in the models' config.json
    "Llama-3.1-8B": Shape(32, 4096, 14336, 32, 8, 128, 128256),
    "Llama-3.1-70B": Shape(80, 8192, 28672, 64, 8, 128, 128256),
    "Mistral-7B-v0.3": Shape(32, 4096, 14336, 32, 8, 128, 32768),
    "Qwen2.5-7B": Shape(28, 3584, 18944, 28, 4, 128, 152064),
    "Command-R+": Shape(64, 12288, 33792, 96, 8, 128, 256000, tied=True),
}


def shape_of(config: dict[str, Any]) -> Shape:
    """The shape that a config.json describes."""
    heads = config["num_attention_heads"]
    return Shape(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or config["hidden_size"] // heads,
        vocabulary=config["vocab_size"],
        tied=config.get("tie_word_embeddings", False),
    )


def weight_bytes(shape: Shape, format_name: str) -> float:
    """Bytes of all weights in a format of FORMATS; norms and biases, less than a thousandth, are left out."""
    linear_bits, embedding_bits = FORMATS[format_name]
    return (shape.linear_parameters * linear_bits + shape.embedding_parameters * embedding_bits) / 8


def cache_bytes(shape: Shape, context: int, sequences: int = 1) -> float:
    """Bytes of the KV cache in FP16 for so many sequences of `context` tokens."""
    return float(shape.kv_bytes_per_token * context * sequences)


@dataclass(frozen=True)
class Plan:
    """What serving takes, in GB, and the devices that hold it (`count` of each, split by tensor parallelism)."""

    weights: float
    cache: float
    total: float
    fits: list[dict[str, Any]]


def plan(shape: Shape, format_name: str, context: int, sequences: int = 1, usable: float = 0.9, most: int = 8) -> Plan:
    """Size a deployment: weights, KV cache, and which GPUs of data/hardware.yaml hold both in `usable` of their memory.

    Tensor parallelism splits heads evenly, so only counts that divide the heads are offered.
    """
    weights, cache = weight_bytes(shape, format_name) / GB, cache_bytes(shape, context, sequences) / GB
    fits = []
    for device in hardware():
        if device["kind"] != "gpu":
            continue
        for count in (1, 2, 4, 8):
            if count <= most and shape.heads % count == 0 and (weights + cache) <= usable * count * device["memory_gb"]:
                ceiling = count * device["bandwidth_gb_s"] / weights
                fits.append({"device": device["name"], "count": count, "tokens/s ceiling": round(ceiling)})
                break
    return Plan(weights, cache, weights + cache, fits)


def hardware() -> list[dict[str, Any]]:
    """data/hardware.yaml."""
    return yaml.safe_load((DATA / "hardware.yaml").read_text())
