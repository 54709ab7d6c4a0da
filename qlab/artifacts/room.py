"""What a budget leaves for layers whose widths are chosen: bits a weight, bytes of files, or what a card holds beside the cache."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from qlab.models.opening import OpenedModel
from qlab.plan.plan import CACHES, GB, USABLE, cache_bytes, check_cache
from qlab.plan.shapes import config_shape, find_device
from qlab.recipes.fitting import Layers
from qlab.recipes.integers import Integers
from qlab.support.errors import UserError
from qlab.support.wording import counted

ON_CARD = (4096, 1, "f16")  # tokens of context, sequences and cache, unless others are asked for
ENTRY = 70  # bytes of a tensor's entry in a safetensors header, beside its name


@dataclass(frozen=True)
class Asked:
    """A budget: `bits` a weight of the layers that are quantized, scales and zero points included, or `size`, bytes of all weight files.
    `label`: how it stands in the artifact's name."""

    label: str
    bits: float | None = None
    size: float | None = None

    def room(self, source: OpenedModel, recipe: Integers, layers: Layers) -> float:
        """Bits that are left for codes, scales and zero points of `layers`, which are those that may be quantized.

        Raises:
            UserError: what is not quantized takes more than was asked for.
        """
        if self.bits is not None:
            return self.bits * sum(math.prod(shape) for shape in layers.values())
        assert self.size is not None
        rest = other_bytes(source, recipe, layers)
        if rest >= self.size:
            raise UserError(
                f"{self.label}: what is not quantized (embedding, head, norms) takes {rest / 1e6:.2f} MB by itself in half precision: ask "
                "for more"
            )
        return 8 * (self.size - rest)


def of_bits(bits: float) -> Asked:
    """So many bits a weight."""
    return Asked(f"{bits:g}", bits=bits)


def of_size(size: float) -> Asked:
    """So many bytes."""
    return Asked(f"{size / GB:g}GB" if size >= GB / 10 else f"{size / 1e6:g}MB", size=size)


def on_card(source: OpenedModel, card: str, context: int, sequences: int, cache: str = "f16") -> Asked:
    """What the `card` of data/hardware.yaml holds beside the KV cache of so many `sequences` of `context` tokens, kept in `cache` (of
    qlab.plan.plan.CACHES), as the planner counts; three digits of it, so that the name is short.

    Raises:
        UserError: no such card, no such cache, or the cache alone is too large for it.
    """
    check_cache(cache)
    device = find_device(card)
    shape = replace(config_shape(source.config, source.name), cache_bits=CACHES[cache])
    usable, cached = USABLE * device["memory_gb"] * GB, cache_bytes(shape, context, sequences)
    if cached >= usable:
        raise UserError(
            f"the KV cache of {counted(sequences, 'sequence')} of {context:,} tokens takes {cached / GB:.2f} GB, and {device['name']} has "
            f"{usable / GB:.2f} GB for weights and cache: ask for a shorter context, fewer sequences or a smaller --cache"
        )
    step = 10.0 ** (math.floor(math.log10(usable - cached)) - 2)
    return of_size(math.floor((usable - cached) / step) * step)


def budget_from(
    source: OpenedModel, bits: float | None, size: float | None, card: str | None, context: int, sequences: int, cache: str
) -> Asked | None:  # fmt: skip
    """The budget by that one of `bits`, `size` (bytes) and `card` that is given; None where none is. The rest is for a card, as `on_card`
    takes it.

    Raises:
        UserError: several of them, or one that cannot be.
    """
    if sum(given is not None for given in (bits, size, card)) > 1:
        raise UserError("--bits, --size and --fit are three ways to give one budget: give one of them")
    if card is None and (context, sequences, cache) != ON_CARD:
        raise UserError("--context, --sequences and --cache say what a card has to hold: give it, such as --fit 'RTX 4090'")
    if bits is not None:
        return of_bits(bits)
    if size is not None:
        return of_size(size)
    return None if card is None else on_card(source, card, context, sequences, cache)


def other_bytes(source: OpenedModel, recipe: Integers, layers: Layers) -> float:
    """Bytes of a checkpoint of compressed-tensors beside codes, scales and zero points of `layers`: tensors in half precision, and of the
    layers weight_shape, weight_g_idx where groups are scattered, and what the file's header says of each."""
    parts = ["weight_packed", "weight_scale", "weight_shape"]
    parts += [] if recipe.symmetric else ["weight_zero_point"]
    parts += ["weight_g_idx"] if recipe.order == "scattered" else []
    found = 0.0
    for name, shape in source.layout.shapes.items():
        called, layer = source.checkpoint.stored_name(name), name.removesuffix(".weight")
        if layer not in layers:
            found += 2 * math.prod(shape) + ENTRY + len(called)
        else:
            stem = len(called) - len("weight")
            found += sum(ENTRY + stem + len(part) for part in parts) + 16 + (4 * shape[1] if recipe.order == "scattered" else 0)
    return found
