"""A budget of bits, spent by damage on types of a GGUF file's tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from qlab.evaluate.damage.cost import controls, damage_of
from qlab.formats.gguf.encoding import gguf_names
from qlab.methods.kquants.blocks import encode
from qlab.methods.kquants.kinds import KINDS
from qlab.methods.widths import Choice, check_room, damage_in_all, least_damage, size_of
from qlab.models.loading import load
from qlab.models.opening import OpenedModel
from qlab.recipes import GGUF
from qlab.recipes.fitting import layers_of
from qlab.support.errors import UserError
from qlab.support.wording import first_and_number

TYPES = "Q3_K,IQ4_XS,Q4_K,Q5_K,Q6_K,Q8_0"  # that a GGUF file's tensors may have, unless others are offered


class Type(NamedTuple):
    """A GGUF type, in the order of the bits a weight that it takes."""

    bits: float
    kind: str


def types_in(text: str) -> list[Type]:
    """Types of a GGUF file's tensors with commas between, such as Q4_K,Q6_K.

    Raises:
        UserError: one is none.
    """
    kinds = list(dict.fromkeys(word.strip().upper() for word in text.split(",")))
    if wrong := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"{wrong[0]!r} is no quantized type of a tensor here: expected some of {', '.join(KINDS)}")
    return sorted(Type(8 * KINDS[kind].bytes / KINDS[kind].block, kind) for kind in kinds)


def choose_types(
    source: OpenedModel, recipe: GGUF, bits: float, offered: Sequence[Type], windows: Tensor, device: str
) -> tuple[GGUF, list[str]]:
    """`recipe` with those of the types `offered` for the tensors of its blocks that cost least within so many `bits` a weight; and what was
    chosen, in sentences. A tensor that the recipe has a type for keeps it; what no type divides the rows of is left to the mix. Tensors are
    searched without importance for this.

    Raises:
        UserError: as damage_of and offered_types.
    """
    groups, sizes, room = offered_types(source, recipe, bits, offered)
    weights = sum(math.prod(layers_of(source.layout)[name]) for target in sizes for name in groups[target])

    def rounding(weight: Tensor, each: Type) -> Tensor:
        return encode(weight.float(), each.kind).dequantize()

    model = load(source, torch.float32, device, apart=True)
    damage = damage_of(
        model, {target: groups[target] for target in sizes}, {target: list(each) for target, each in sizes.items()}, windows, rounding
    )
    choices = {target: Choice(size, damage[target]) for target, size in sizes.items()}
    chosen = least_damage(choices, room)
    said = [f"{size_of(choices, chosen) / weights:.3f} bits a weight of the {len(chosen)} tensors whose types are chosen:"]
    for each in sorted(set(chosen.values())):
        names = [target for target, found in chosen.items() if found == each]
        said.append(f"  {each.kind}: {len(names)} tensors ({first_and_number(names)})")
    beside = controls(choices, room, weights, ("one type", "types at random"))
    said.append(f"predicted KL, the sum over tensors encoded alone: {damage_in_all(choices, chosen):.5f} nats a token; {beside}")
    types = tuple((f"^{re.escape(target)}$", each.kind) for target, each in chosen.items())
    return replace(recipe, tensor_types=recipe.tensor_types + types, budget=f"{bits:g}"), said


def offered_types(
    source: OpenedModel, recipe: GGUF, bits: float, offered: Sequence[Type]
) -> tuple[dict[str, list[str]], dict[str, dict[Type, float]], float]:
    """The layers that each of the file's tensors is made of, the bits that a tensor takes in each type that it may have, and the bits that
    there are for all.

    Raises:
        UserError: no tensor has a type to choose, or even the smallest types take more.
    """
    groups, layers = dict[str, list[str]](), layers_of(source.layout)
    for name in layers:
        targets = gguf_names(f"{name}.weight", source.text_config)
        if len(targets) == 1 and not recipe.types.asked_type(targets[0], source.text_config):
            groups.setdefault(targets[0], []).append(name)  # experts are one tensor
    tried = {target: [each for each in offered if not layers[names[0]][1] % KINDS[each.kind].block] for target, names in groups.items()}
    counts = {target: sum(math.prod(layers[name]) for name in groups[target]) for target, types in tried.items() if types}
    if not counts:
        raise UserError(f"{recipe.name}: no tensor of this model has a type to choose among {', '.join(each.kind for each in offered)}")
    sizes = {target: {each: each.bits * count for each in tried[target]} for target, count in counts.items()}
    room = bits * sum(counts.values())
    check_room({target: Choice(size, {}) for target, size in sizes.items()}, room)
    return groups, sizes, room
