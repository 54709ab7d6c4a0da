"""The memory planner: what a model takes in each format, with its context, and what hardware holds that.

GB are decimal (10⁹ bytes), as vendors and the guide count them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from qlab import DATA
from qlab.support.errors import UserError
from qlab.support.reading import MOST

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
WIDTHS = {"INT8": 8, "AWQ/GPTQ INT4": 4, "INT3": 3, "INT2": 2}  # grouped integers: bits of a code
# All that can be planned: FORMATS, grouped integers with the smaller groups that models with short rows need, and 8 bits of weights and
# activations, whose scales, one a row or a block of 128 x 128, are not counted: of a row of 4096 weights they take 0.01 bits a weight.
SMALLER = {f"{name} g{size}": (bits + (16 + bits) / size, 16.0) for size in (64, 32) for name, bits in WIDTHS.items()}
BITS = FORMATS | SMALLER | {"INT8 W8A8": (8.0, 16.0), "FP8 W8A8": (8.0, 16.0)}
STORED = "as stored"  # a format of a Shape that knows how its model's files hold it (qlab.plan.stored)


# Bits of a number in the KV cache: FP16, llama.cpp's blocks of 32 with an FP16 scale, vLLM's 8-bit floats.
CACHES = {"f16": 16.0, "q8_0": 8 + 16 / 32, "q4_0": 4 + 16 / 32, "fp8": 8.0}


def check_cache(name: str) -> None:
    """Raise the UserError of a name that is none of CACHES."""
    if name not in CACHES:
        raise UserError(f"a KV cache in {name!r}: expected {', '.join(CACHES)}")


def of_groups(format_name: str, size: int) -> str:
    """The key of BITS for the same format with groups of `size` weights, 128, 64 or 32; of a format without such groups, its own."""
    name = format_name.partition(" g")[0]
    sized = f"{name} g{size}"
    return sized if name in WIDTHS and sized in BITS else name if name in WIDTHS else format_name


@dataclass(frozen=True)
class Cached:
    """What a block keeps of a sequence: numbers a token, of the last `window` tokens where there is one, and of all of it a `state`."""

    numbers: int
    window: int | None
    state: int

    def bytes(self, context: int, bits: float = 16.0) -> float:
        """Of a sequence of `context` tokens, its numbers in so many bits; the state is kept in FP16."""
        return bits / 8 * self.numbers * min(context, self.window or context) + 2 * self.state


@dataclass(frozen=True)
class Counted:
    """What a model's class tells where its sizes alone do not (qlab.plan.counted).

    `linear`: all linear layers of the blocks, outputs and inputs, by name; `read`: their weights that one token reads; `ends`: weights of
    embedding and head; `towers`: of what reads images; `cached`: a block each.
    """

    linear: tuple[tuple[str, tuple[int, int]], ...]
    read: int
    ends: int
    towers: int
    cached: tuple[Cached, ...]


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder that decide its memory; where it is not a plain one, `counted` tells the rest. `cache_bits`: of a number in
    its KV cache (CACHES). `stored`: where the model's files are here and quantized, what BITS has of other formats; `stored_q4_k`: bytes of
    Q4_K among them."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool = False
    counted: Counted | None = None
    cache_bits: float = 16.0
    stored: tuple[float, float] | None = None
    stored_q4_k: float = 0.0

    @property
    def block(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of the linear layers of one decoder block, by their names; where blocks may differ, of all."""
        if self.counted:
            return dict(self.counted.linear)
        queries, keys, hidden, wide = self.heads * self.head_size, self.kv_heads * self.head_size, self.hidden, self.intermediate
        return {
            "q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden), "o_proj": (hidden, queries),
            "gate_proj": (wide, hidden), "up_proj": (wide, hidden), "down_proj": (hidden, wide),
        }  # fmt: skip

    @property
    def linear_parameters(self) -> int:
        """Weights in the decoder blocks' linear layers."""
        return (1 if self.counted else self.layers) * sum(outputs * inputs for outputs, inputs in self.block.values())

    @property
    def read_parameters(self) -> int:
        """Those of them that one token reads: of experts, the ones it is given to."""
        return self.counted.read if self.counted else self.linear_parameters

    @property
    def embedding_parameters(self) -> int:
        """Weights of embedding and head, and of what lies beside the decoder."""
        if self.counted:
            return self.counted.ends + self.counted.towers
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self.embedding_parameters

    @property
    def kv_bytes_per_token(self) -> float:
        """Keys and values of every layer that keeps those of all tokens."""
        if self.counted:
            return self.cache_bits / 8 * sum(block.numbers for block in self.counted.cached if not block.window)
        return self.cache_bits / 8 * 2 * self.layers * self.kv_heads * self.head_size


SHAPES = {  # as published in the models' config.json
    "Llama-3.1-8B": Shape(32, 4096, 14336, 32, 8, 128, 128256),
    "Llama-3.1-70B": Shape(80, 8192, 28672, 64, 8, 128, 128256),
    "Mistral-7B-v0.3": Shape(32, 4096, 14336, 32, 8, 128, 32768),
    "Qwen2.5-7B": Shape(28, 3584, 18944, 28, 4, 128, 152064),
    "Command-R+": Shape(64, 12288, 33792, 96, 8, 128, 256000, tied=True),
}


def shape_of(config: dict[str, Any]) -> Shape:
    """The shape that a config.json describes.

    Raises:
        UserError: a size is missing, or no whole number from 1 to MOST.
    """
    sizes = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    optional = [name for name in ("num_key_value_heads", "head_dim") if config.get(name) is not None]
    for name in (*sizes, *optional):
        if name not in config:
            raise UserError(f"the configuration lacks {name}, without which its memory cannot be counted")
        if type(config[name]) is not int or not 1 <= config[name] <= MOST:
            raise UserError(f"the configuration's {name} is {str(config[name])[:40]}: expected a whole number from 1 to {MOST:,}")
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


def bits_of(shape: Shape, format_name: str) -> tuple[float, float]:
    """Bits a weight of the linear layers, and of embedding and head, in a format of BITS, or as the shape's model is STORED."""
    return shape.stored if format_name == STORED and shape.stored else BITS[format_name]


def weight_bytes(shape: Shape, format_name: str) -> float:
    """Bytes of all weights in such a format; norms and biases, less than a thousandth, are left out."""
    linear_bits, embedding_bits = bits_of(shape, format_name)
    return (shape.linear_parameters * linear_bits + shape.embedding_parameters * embedding_bits) / 8


def read_bytes(shape: Shape, format_name: str) -> float:
    """Bytes of weights that one step reads for one token: blocks, of experts those that it is given to, and head; of the input embedding
    only a row, which is left out."""
    linear, embedding = bits_of(shape, format_name)
    return (shape.read_parameters * linear + shape.vocabulary * shape.hidden * embedding) / 8


def cache_bytes(shape: Shape, context: int, sequences: int = 1) -> float:
    """Bytes of the KV cache for so many sequences of `context` tokens."""
    if shape.counted:
        return sequences * sum(block.bytes(context, shape.cache_bits) for block in shape.counted.cached)
    return shape.kv_bytes_per_token * context * sequences


USABLE = 0.9
"""The share of a GPU's memory that weights and cache may take: vLLM's --gpu-memory-utilization 0.90, as the guide gives it."""


@dataclass(frozen=True)
class Fit:
    """Whether `count` devices hold a model with so much context, in GB: `needed` against `usable`; and the longest context they hold."""

    weights: float
    needed: float
    usable: float
    longest: int

    @property
    def holds(self) -> bool:
        return self.needed <= self.usable


def fit(shape: Shape, format_name: str, context: int, memory_gb: float, count: int, sequences: int = 1, usable: float = USABLE) -> Fit:
    """The one rule by which this workbook says that a model fits: weights plus KV cache within `usable` of the memory.

    Devices beyond the number of KV heads repeat heads, and with them the cache.
    """
    weights, room = weight_bytes(shape, format_name) / GB, usable * count * memory_gb
    repeated = max(1.0, count / shape.kv_heads)
    longest = longest_context(shape, (room - weights) * GB / (sequences * repeated))
    return Fit(weights, weights + repeated * cache_bytes(shape, context, sequences) / GB, room, longest)


def longest_context(shape: Shape, room: float) -> int:
    """Tokens of one sequence whose cache takes at most `room` bytes; MOST where it does not grow with them."""
    grows = shape.kv_bytes_per_token
    if not shape.counted:
        return int(room / grows) if room > 0 else 0
    low, high = 0, MOST if not grows else max(0, int(room / grows))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cache_bytes(shape, middle) <= room else (low, middle - 1)
    return low


def splits(shape: Shape, count: int) -> bool:
    """Whether tensor parallelism can split a model over so many devices: each takes as many heads, and whole or repeated KV heads."""
    return shape.heads % count == 0 and (shape.kv_heads % count == 0 or count % shape.kv_heads == 0)


def device_named(name: str) -> dict[str, Any]:
    """The entry of data/hardware.yaml whose name ends so."""
    return next(device for device in hardware() if device["name"].endswith(name))


@dataclass(frozen=True)
class Plan:
    """What serving takes, in GB, and the devices that hold it (`count` of each, split by tensor parallelism), each with the ceiling on
    its tokens/s of all sequences: a step reads the weights (`read_bytes`) and the whole cache once."""

    weights: float
    cache: float
    total: float
    fits: list[dict[str, Any]]


def plan(shape: Shape, format_name: str, context: int, sequences: int = 1, usable: float = USABLE, most: int = 8) -> Plan:
    """Size a deployment: weights, KV cache, and which GPUs of data/hardware.yaml hold both in `usable` of their memory.

    Only counts over which tensor parallelism can split the model are offered.
    """
    weights, cache = weight_bytes(shape, format_name) / GB, cache_bytes(shape, context, sequences) / GB
    fits = []
    for device in hardware():
        if device["kind"] != "gpu":
            continue
        for count in range(1, most + 1):
            found = fit(shape, format_name, context, device["memory_gb"], count, sequences, usable)
            if splits(shape, count) and found.holds:
                reading = read_bytes(shape, format_name) / GB + found.needed - found.weights
                ceiling = sequences * count * device["bandwidth_gb_s"] / reading
                fits.append({"device": device["name"], "count": count, "tokens/s ceiling": round(ceiling)})
                break
    return Plan(weights, cache, weights + cache, fits)


@cache
def hardware() -> list[dict[str, Any]]:
    """data/hardware.yaml, read once: nobody changes what it gives."""
    return yaml.safe_load((DATA / "hardware.yaml").read_text())
