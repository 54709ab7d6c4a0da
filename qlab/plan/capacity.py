"""What given devices hold of a model, how fast they can be at best, and what stays on the CPU.

The ceiling on speed is that of memory: one step reads the blocks, the head and the cache of every sequence once,
and gives each sequence a token. Kernels at batch 1 reach 65 to 75 % of it; with many sequences arithmetic may bind before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qlab.plan.plan import CACHES, GB, STORED, USABLE, Shape, bits_of, cache_bytes, fit, read_bytes, splits, weight_bytes
from qlab.support.errors import UserError
from qlab.support.wording import counted, sized


@dataclass(frozen=True)
class Capacity:
    """A deployment counted out. GB are 10⁹ bytes; `ceiling` is tokens/s of all sequences together."""

    linear: float
    embedding: float
    cache: float
    reserve: float
    needed: float
    usable: float
    holds: bool
    splits: bool
    longest: int
    most_sequences: int
    ceiling: float
    fp16_weights: float
    fp16_holds: bool


def capacity(shape: Shape, format_name: str, context: int, sequences: int, device: dict[str, Any], count: int) -> Capacity:
    """Count out `sequences` of `context` tokens on `count` devices of data/hardware.yaml under tensor parallelism.

    `longest` is the context that so many sequences can have, `most_sequences` how many of `context` tokens fit. Where devices
    outnumber the KV heads, heads and their cache are held more than once.

    Raises:
        UserError: a number below one.
    """
    if min(context, sequences, count) < 1:
        raise UserError(f"context {context}, sequences {sequences}, count {count}: expected each to be at least 1")
    found = fit(shape, format_name, context, device["memory_gb"], count, sequences)
    one = fit(shape, format_name, context, device["memory_gb"], count, 1)
    cache = found.needed - found.weights
    reading = read_bytes(shape, format_name) / GB + cache
    return Capacity(
        linear=shape.linear_parameters * bits_of(shape, format_name)[0] / 8 / GB,
        embedding=shape.embedding_parameters * bits_of(shape, format_name)[1] / 8 / GB,
        cache=cache,
        reserve=(1 - USABLE) * count * device["memory_gb"],
        needed=found.needed,
        usable=found.usable,
        holds=found.holds,
        splits=splits(shape, count),
        longest=found.longest,
        most_sequences=one.longest // context,
        ceiling=sequences * count * device["bandwidth_gb_s"] / reading,
        fp16_weights=weight_bytes(shape, "FP16") / GB,
        fp16_holds=fit(shape, "FP16", context, device["memory_gb"], count, sequences).holds,
    )


@dataclass(frozen=True)
class Offload:
    """llama.cpp's split: `layers` of `of` with head and their cache on the devices, the rest on the CPU. GB; tokens/s of all sequences.

    `twice` of `on_cpu` are weights that llama.cpp holds a second time, packed for AVX2; the first copy is the mapped file, which the
    system can take back.
    """

    layers: int
    of: int
    on_devices: float
    on_cpu: float
    twice: float
    cpu_holds: bool
    ceiling: float


def offload(
    shape: Shape, format_name: str, context: int, sequences: int, device: dict[str, Any], count: int, cpu: dict[str, Any]
) -> Offload:
    """How many layers fit on the devices (llama.cpp's n_gpu_layers), and the ceiling with the rest read at the CPU's bandwidth.

    Layers lie on devices one after the other, so a step reads at one device's bandwidth at a time, and heads need not divide.
    A layer lies whole on one device. The head counts as on the devices where it fits; the input embedding lies on the CPU.
    """
    linear, embedding = bits_of(shape, format_name)
    head = shape.vocabulary * shape.hidden * embedding / 8 / GB
    layer = (shape.linear_parameters * linear / 8 + cache_bytes(shape, context, sequences)) / shape.layers / GB
    room = USABLE * device["memory_gb"]
    places = (int((room - head) / layer) + (count - 1) * int(room / layer)) if count and room >= head else 0
    layers = min(shape.layers, places)
    on_devices = layers * layer + (head if layers else 0.0)
    on_cpu = (shape.layers - layers) * layer + (0.0 if layers else head)
    seconds = on_devices / device["bandwidth_gb_s"] + on_cpu / cpu["bandwidth_gb_s"]
    packed = {"GGUF Q4_K_M": q4_k_bytes(shape), STORED: shape.stored_q4_k}.get(format_name, 0.0)
    twice = packed / GB * (shape.layers - layers) / shape.layers
    held = on_cpu + twice + (head if layers or not shape.tied else 0.0)  # with the input embedding, of which a step reads a row
    return Offload(layers, shape.layers, on_devices, held, twice, held <= USABLE * cpu["memory_gb"], sequences / seconds)


def cache_name(shape: Shape) -> str:
    """What the KV cache of a shape is kept in, as people say it."""
    return next(name for name, bits in CACHES.items() if bits == shape.cache_bits).replace("f16", "FP16").replace("fp8", "FP8")


def q4_k_bytes(shape: Shape) -> float:
    """Bytes of Q4_K_M's linear layers that are Q4_K, 4.5 bits a weight: all but the half of values and down projections in Q6_K."""
    mixed = shape.layers * shape.hidden * (shape.kv_heads * shape.head_size + shape.intermediate) / 2
    return (shape.linear_parameters - mixed) * 4.5 / 8


def sentences(
    found: Capacity, shape: Shape, format_name: str, context: int, sequences: int, device: dict[str, Any], count: int
) -> list[str]:
    """The arithmetic in words, and where the guide counts otherwise."""
    devices = f"{count} × {device['name']}"
    text = [
        f"{sized(found.linear)} of linear layers (scales and zero points included) + {sized(found.embedding)} of embedding and head + "
        f"{sized(found.cache)} of {cache_name(shape)} cache ({counted(sequences, 'sequence')} of {context:,} tokens) = "
        f"{sized(found.needed)}; {devices} {'has' if count == 1 else 'have'} "
        f"{count * device['memory_gb']} GB, of which {sized(found.reserve)} are kept for activations and the runtime: "
        f"{sized(found.usable)}."
    ]
    if not found.splits:
        text.append(
            f"Tensor parallelism cannot split it over {count}: {shape.heads} heads and {shape.kv_heads} KV heads do not divide evenly."
        )
    if found.holds:
        text.append(
            f"The memory suffices, up to {found.longest:,} tokens a sequence, "
            f"or {counted(found.most_sequences, 'sequence')} of {context:,}."
        )
    else:
        text.append(
            f"It does not fit: {sized(found.needed - found.usable)} too many; "
            + (f"{found.longest:,} tokens a sequence would fit." if found.longest else "the weights alone are too large.")
        )
    if shape.read_parameters < shape.linear_parameters:
        read = shape.read_parameters * bits_of(shape, format_name)[0] / 8 / GB
        text.append(
            f"Of the experts' weights, all in memory, one token reads few: {sized(read)} of the linear layers; several tokens, more."
        )
    if shape.counted and shape.counted.towers:
        text.append(f"What reads images, {sized(2 * shape.counted.towers / GB)} in FP16, is counted with embedding and head.")
    if found.holds and found.splits:
        text.append(f"At most {found.ceiling:,.0f} tokens/s in all: the memory's bandwidth allows no more, and real kernels reach less.")
    beside = "they fit too" if found.fp16_holds else "they do not fit"
    text.append(
        f"In FP16 the weights are {sized(found.fp16_weights)}, "
        f"{found.fp16_weights / (found.linear + found.embedding):.2f} times as much; {beside}."
    )
    if 65e9 < shape.parameters < 75e9 and bits_of(shape, format_name)[0] < 5 and bits_of(shape, format_name)[0] >= 4:
        text.append(
            f"The guide counts 35 GB for 70B at 4 bits: the floor. With scales, zero points, embedding and head it is "
            f"{found.linear + found.embedding:.1f} GB, and the cache comes on top."
        )
    if 65e9 < shape.parameters < 75e9 and format_name == "FP16" and device["id"] == "rtx-4090":
        text.append(f"The guide puts it on four RTX 4090: they hold 96 GB, not {found.fp16_weights:.0f} GB.")
    return text
