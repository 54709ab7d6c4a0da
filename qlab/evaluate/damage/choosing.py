"""A budget of bits, spent by damage: how far the predictions move when one group of layers is rounded and nothing else. Spent on widths of
integers, or on types of a GGUF file's tensors.

The whole model is in memory, and runs the windows once for each group and width, from the group's block on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qlab.artifacts.budget import LIBRARIES
from qlab.artifacts.room import Asked
from qlab.evaluate.damage.resumed import FromBlock
from qlab.evaluate.kept import IN_MEMORY, kept_logits
from qlab.evaluate.quality import measure_quality
from qlab.formats.gguf.encoding import gguf_names
from qlab.methods.kquants.blocks import encode
from qlab.methods.kquants.kinds import KINDS
from qlab.methods.rtn import rtn
from qlab.methods.widths import Choice, W, at_random, check_room, damage_in_all, least_damage, size_of, uniform
from qlab.models.loading import load
from qlab.models.opening import OpenedModel
from qlab.models.resting.layers import standing_in
from qlab.recipes import GGUF
from qlab.recipes.fitting import Layers, layers_of
from qlab.recipes.integers import Integers
from qlab.recipes.mixed import HALF, Mixed, Way, mixed, of_one_width, offered_ways, stored_bits, way_of
from qlab.support.errors import UserError
from qlab.support.progress import progress
from qlab.support.wording import first_and_number

FILLED = 0.99  # of the room is what was asked for
TYPES = "Q3_K,IQ4_XS,Q4_K,Q5_K,Q6_K,Q8_0"  # that a GGUF file's tensors may have, unless others are offered
AT_HAND, ROUNDED = 2.0, 5.0  # times the predictions of a window, and the largest layer, that are in memory while one is rounded
Rounding = Callable[[Tensor, W], Tensor]
"""(weight [out, in], width) → what it becomes in so many bits."""


@torch.no_grad()
def damage_of(
    model: nn.Module, groups: Mapping[str, Sequence[str]], widths: Mapping[str, Sequence[W]], windows: Tensor, rounding: Rounding[W]
) -> dict[str, dict[W, float]]:
    """KL of the model from itself, nats a token, with the layers of each group rounded to each of its widths, over windows int64 [windows,
    length].

    Raises:
        UserError: as kept_logits and measure_quality.
    """
    expected = kept_logits(model, windows.split(1))
    resumed = FromBlock(model, (name for names in groups.values() for name in names), windows)
    predicted = resumed if resumed.agrees(expected) else model
    found: dict[str, dict[W, float]] = {group: {} for group in groups}
    in_order = sorted(groups.items(), key=lambda group: resumed.block_of(group[1]))
    for group, names in progress(in_order, "what each layer costs", leave=False):
        layers: list[Any] = [model.get_submodule(name) for name in names]
        if predicted is resumed:
            resumed.advance(resumed.block_of(names))
        for width in widths[group]:
            with ExitStack() as rounded:
                for layer in layers:
                    rounded.enter_context(standing_in(layer, rounding(layer.weight.data, width)))
                found[group][width] = max(measure_quality(predicted, windows, expected, group).kl or 0.0, 0.0)
    return found


def choosing_bytes(source: OpenedModel, windows: int, length: int) -> float:
    """Bytes that choose_widths takes beside the process, for so many windows of so many tokens: the model in FP32, its predictions as they
    are kept, those of the window at hand, and the layer that is rounded."""
    shapes = source.layout.shapes
    predictions = 4.0 * shapes[source.layout.embedding][0] * length
    largest = 4.0 * max(math.prod(shape) for shape in source.layout.linear.values())
    whole = 4.0 * source.layout.weights
    return whole + min(windows * predictions, IN_MEMORY) + AT_HAND * predictions + ROUNDED * largest + LIBRARIES


def choices_of(
    model: nn.Module, recipe: Integers, layers: Layers, widths: Mapping[str, Sequence[W]], groups: Mapping[str, Sequence[str]],
    windows: Tensor,
) -> dict[str, Choice[W]]:  # fmt: skip
    """What each group of `layers` takes and costs at each of its `widths`, bits or a Way. Layers are rounded to nearest for this, whatever
    the recipe does; half precision is taken to cost nothing.

    Raises:
        UserError: as damage_of.
    """

    def rounding(weight: Tensor, width: W) -> Tensor:
        bits, size = way_of(width, recipe)
        return rtn(weight, bits, size, recipe.symmetric).dequantize()

    rounded = {group: [width for width in each if way_of(width, recipe).bits != HALF] for group, each in widths.items()}
    damage = damage_of(model, {group: groups[group] for group, each in rounded.items() if each}, rounded, windows, rounding)
    sizes = sizes_of(recipe, layers, widths, groups)
    return {group: Choice(size, dict.fromkeys(size, 0.0) | damage.get(group, {})) for group, size in sizes.items()}


def sizes_of(
    recipe: Integers, layers: Layers, widths: Mapping[str, Sequence[W]], groups: Mapping[str, Sequence[str]]
) -> dict[str, dict[W, float]]:
    """Bits that each group takes at each of its widths, with scales and zero points."""
    return {
        group: {
            width: sum(stored_bits(recipe, width, layers[name][1]) * math.prod(layers[name]) for name in names) for width in widths[group]
        }
        for group, names in groups.items()
    }


def choose_widths(
    source: OpenedModel, recipe: Integers, asked: Asked, widths: Sequence[int], exceptions: Mapping[str, int], windows: Tensor, device: str,
    sizes: Sequence[int] = (),
) -> tuple[Mixed, list[str]]:  # fmt: skip
    """`recipe` with those of `widths` for its layers, in its own groups or in some of these `sizes`, that cost least within the budget that
    was `asked` for; and what was chosen, in sentences.

    `exceptions`: widths that patterns (regular expressions, of whole names) ask for; the last that fits a layer decides for all that
    runtimes join to it.

    Raises:
        UserError: as Asked.room, damage_of and least_damage, or a pattern that is none, or fits no layer.
    """
    layers, groups, tried, room = offered(source, recipe, asked, widths, exceptions, sizes)
    choices = choices_of(load(source, torch.float32, device, apart=True), recipe, layers, tried, groups, windows)
    chosen = least_damage(choices, room)
    by_layer = {name: way for group, way in chosen.items() for name in groups[group]}
    return mixed(recipe, by_layer, asked.label), told(choices, by_layer, chosen, asked, room, layers)


def offered(
    source: OpenedModel, recipe: Integers, asked: Asked, widths: Sequence[int], exceptions: Mapping[str, int], sizes: Sequence[int] = ()
) -> tuple[Layers, Mapping[str, Sequence[str]], Mapping[str, Sequence[Way]], float]:
    """The layers that may be quantized, the groups of one width that they are in, how each group may be rounded, and the bits that are left
    for them.

    Raises:
        UserError: as Asked.room and widths_asked, or even the smallest widths take more.
    """
    left = recipe.unquantized(layers_of(source.layout))
    layers = {name: shape for name, shape in layers_of(source.layout).items() if name not in left}
    groups, room = of_one_width(list(layers)), asked.room(source, recipe, layers)
    fixed = widths_asked(groups, exceptions)
    tried = {
        group: [way_of(fixed[group], recipe)]
        if group in fixed
        else offered_ways(recipe, widths, sizes, [layers[name][1] for name in names])
        for group, names in groups.items()
    }
    check_room({group: Choice(size, {}) for group, size in sizes_of(recipe, layers, tried, groups).items()}, room)  # before the work
    return layers, groups, tried, room


def widest(
    source: OpenedModel, recipe: Integers, asked: Asked, widths: Sequence[int], exceptions: Mapping[str, int], sizes: Sequence[int] = ()
) -> Mixed:
    """What choose_widths makes of `recipe` at most, as far as that is known before the work: each group has the widest code that there is
    room for while all others are as small as can be. All of them together are beyond the budget; each alone is not.

    Raises:
        UserError: as `offered`.
    """
    layers, groups, tried, room = offered(source, recipe, asked, widths, exceptions, sizes)
    bits = sizes_of(recipe, layers, tried, groups)
    least = {group: min(each.values()) for group, each in bits.items()}
    spare = room - sum(least.values())
    kept = way_of(HALF, recipe)
    reached = {
        group: max((way for way in each if way.bits != HALF and each[way] - least[group] <= spare), default=kept, key=each.__getitem__)
        for group, each in bits.items()
    }
    return mixed(recipe, {name: way for group, way in reached.items() for name in groups[group]}, asked.label)


def told(
    choices: Mapping[str, Choice[Way]], by_layer: Mapping[str, Way], chosen: Mapping[str, Way], asked: Asked, room: float, layers: Layers
) -> list[str]:
    """What was chosen, in sentences, with one width and widths at random as controls."""
    weights = sum(math.prod(shape) for shape in layers.values())
    taken = size_of(choices, chosen)
    said = [f"{taken / weights:.3f} bits a weight of the {len(by_layer)} layers that are quantized, scales included:"]
    one_size = len({way.size for choice in choices.values() for way in choice.size}) == 1
    for way in sorted(set(by_layer.values())):
        names = [name for name in by_layer if by_layer[name] == way]
        how = "half precision" if way.bits == HALF else f"{way.bits} bits{'' if one_size else f' in groups of {way.size}'}"
        said.append(f"  {how}: {len(names)} layers ({first_and_number(names)})")
    if asked.size:
        said.append(f"weight files of {(asked.size - (room - taken) / 8) / 1e6:.2f} MB, of {asked.size / 1e6:.2f} MB asked for")
    if taken < FILLED * room:
        widest = all(choice.size[chosen[group]] == max(choice.size.values()) for group, choice in choices.items())
        why = "every layer has the widest code that was offered" if widest else "no choice of these widths comes nearer"
        said.append(f"{(room - taken) / 8e6:.2f} MB are left: {why}; --widths offers others")
    beside = controls(choices, room, weights, ("one width", "widths at random"))
    return [*said, f"predicted KL, the sum over layers rounded to nearest: {damage_in_all(choices, chosen):.5f} nats a token; {beside}"]


def controls(choices: Mapping[str, Choice[W]], room: float, weights: int, names: tuple[str, str]) -> str:
    """What is predicted of one width for all and of widths at random, called by these `names`, each with its size."""
    found = dict(zip(names, (uniform(choices, room), at_random(choices, room, seed=0))))
    return ", ".join(
        f"{name} {damage_in_all(choices, each):.5f} ({size_of(choices, each) / weights:.3f} bits)" for name, each in found.items()
    )


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


def widths_asked(groups: Mapping[str, Sequence[str]], asked: Mapping[str, int]) -> dict[str, int]:
    """The groups that a pattern fits a layer of, and the width that the last of these asks for.

    Raises:
        UserError: a pattern that is none, or fits no layer.
    """
    found: dict[str, int] = {}
    for pattern, width in asked.items():
        try:
            fitting = {group: width for group, names in groups.items() if any(re.search(pattern, name) for name in names)}
        except re.error as error:
            raise UserError(f"{pattern!r} is no regular expression ({error}): expected such as 'layers.0.|down_proj'") from error
        if not fitting:
            raise UserError(
                f"{pattern!r} fits no layer that would be quantized: expected a part of a name such as {next(iter(groups.values()))[0]}"
            )
        found |= fitting
    return found
