"""A budget of bits, spent by damage on widths of integers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from qlab.artifacts.room import Asked
from qlab.evaluate.damage.cost import controls, damage_of
from qlab.methods.rtn import rtn
from qlab.methods.widths import Choice, W, check_room, damage_in_all, least_damage, size_of
from qlab.models.loading import load
from qlab.models.opening import OpenedModel
from qlab.recipes.fitting import Layers, layers_of
from qlab.recipes.integers import Integers
from qlab.recipes.mixed import HALF, Mixed, Way, mixed, of_one_width, offered_ways, stored_bits, way_of
from qlab.support.errors import UserError
from qlab.support.wording import first_and_number

FILLED = 0.99  # of the room is what was asked for


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
