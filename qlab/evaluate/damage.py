"""A budget of bits, spent by damage: how far the predictions move when one group of layers is rounded and nothing else.

The whole model is in memory, and runs the windows once for each group and width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from qlab.artifacts.budget import LIBRARIES
from qlab.artifacts.room import Asked
from qlab.evaluate.kept import IN_MEMORY, kept_logits
from qlab.evaluate.quality import measure_quality
from qlab.methods.rtn import rtn
from qlab.methods.widths import Choice, at_random, check_room, damage_in_all, least_damage, size_of, uniform
from qlab.models.loading import load
from qlab.models.opening import OpenedModel
from qlab.models.resting.layers import standing_in
from qlab.recipes.fitting import Layers, layers_of
from qlab.recipes.integers import Integers
from qlab.recipes.mixed import HALF, Mixed, mixed, of_one_width, stored_bits
from qlab.support.errors import UserError
from qlab.support.progress import progress
from qlab.support.wording import first_and_number

FILLED = 0.99  # of the room is what was asked for
AT_HAND, ROUNDED = 2.0, 5.0  # times the predictions of a window, and the largest layer, that are in memory while one is rounded
Rounding = Callable[[Tensor, int], Tensor]
"""(weight [out, in], width) → what it becomes in so many bits."""


@torch.no_grad()
def damage_of(
    model: nn.Module, groups: Mapping[str, Sequence[str]], widths: Mapping[str, Sequence[int]], windows: Tensor, rounding: Rounding
) -> dict[str, dict[int, float]]:
    """KL of the model from itself, nats a token, with the layers of each group rounded to each of its widths, over windows int64 [windows,
    length].

    Raises:
        UserError: as kept_logits and measure_quality.
    """
    expected = kept_logits(model, windows.split(1))
    found: dict[str, dict[int, float]] = {}
    for group, names in progress(list(groups.items()), "what each layer costs", leave=False):
        layers: list[Any] = [model.get_submodule(name) for name in names]
        found[group] = {}
        for width in widths[group]:
            with ExitStack() as rounded:
                for layer in layers:
                    rounded.enter_context(standing_in(layer, rounding(layer.weight.data, width)))
                found[group][width] = max(measure_quality(model, windows, expected, group).kl or 0.0, 0.0)
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
    model: nn.Module, recipe: Integers, layers: Layers, widths: Mapping[str, Sequence[int]], groups: Mapping[str, Sequence[str]],
    windows: Tensor,
) -> dict[str, Choice]:  # fmt: skip
    """What each group of `layers` takes and costs at each of its `widths`. Layers are rounded to nearest for this, whatever the recipe
    does; half precision is taken to cost nothing.

    Raises:
        UserError: as damage_of.
    """

    def rounding(weight: Tensor, width: int) -> Tensor:
        return rtn(weight, width, recipe.group_size, recipe.symmetric).dequantize()

    rounded = {group: [width for width in each if width != HALF] for group, each in widths.items()}
    damage = damage_of(model, {group: groups[group] for group, each in rounded.items() if each}, rounded, windows, rounding)
    sizes = sizes_of(recipe, layers, widths, groups)
    return {group: Choice(size, {HALF: 0.0} | damage.get(group, {})) for group, size in sizes.items()}


def sizes_of(
    recipe: Integers, layers: Layers, widths: Mapping[str, Sequence[int]], groups: Mapping[str, Sequence[str]]
) -> dict[str, dict[int, float]]:
    """Bits that each group takes at each of its widths, with scales and zero points."""
    return {
        group: {
            width: sum(stored_bits(recipe, width, layers[name][1]) * math.prod(layers[name]) for name in names) for width in widths[group]
        }
        for group, names in groups.items()
    }


def choose_widths(
    source: OpenedModel, recipe: Integers, asked: Asked, widths: Sequence[int], exceptions: Mapping[str, int], windows: Tensor, device: str
) -> tuple[Mixed, list[str]]:  # fmt: skip
    """`recipe` with those of `widths` for its layers that cost least within the budget that was `asked` for; and what was chosen, in
    sentences.

    `exceptions`: widths that patterns (regular expressions, of whole names) ask for; the last that fits a layer decides for all that
    runtimes join to it.

    Raises:
        UserError: as Asked.room, damage_of and least_damage, or a pattern that is none, or fits no layer.
    """
    left = recipe.unquantized(layers_of(source.layout))
    layers = {name: shape for name, shape in layers_of(source.layout).items() if name not in left}
    groups, room = of_one_width(list(layers)), asked.room(source, recipe, layers)
    fixed = widths_asked(groups, exceptions)
    tried = {group: [fixed[group]] if group in fixed else list(widths) for group in groups}
    check_room({group: Choice(size, {}) for group, size in sizes_of(recipe, layers, tried, groups).items()}, room)  # before the work
    choices = choices_of(load(source, torch.float32, device, apart=True), recipe, layers, tried, groups, windows)
    chosen = least_damage(choices, room)
    by_layer = {name: width for group, width in chosen.items() for name in groups[group]}
    return mixed(recipe, by_layer, asked.label), told(choices, by_layer, chosen, asked, room, layers)


def told(
    choices: Mapping[str, Choice], by_layer: Mapping[str, int], chosen: Mapping[str, int], asked: Asked, room: float, layers: Layers
) -> list[str]:
    """What was chosen, in sentences, with one width and widths at random as controls."""
    weights = sum(math.prod(shape) for shape in layers.values())
    taken = size_of(choices, chosen)
    said = [f"{taken / weights:.3f} bits a weight of the {len(by_layer)} layers that are quantized, scales included:"]
    for width in sorted(set(by_layer.values())):
        names = [name for name in by_layer if by_layer[name] == width]
        said.append(f"  {'half precision' if width == HALF else f'{width} bits'}: {len(names)} layers ({first_and_number(names)})")
    if asked.size:
        said.append(f"weight files of {(asked.size - (room - taken) / 8) / 1e6:.2f} MB, of {asked.size / 1e6:.2f} MB asked for")
    if taken < FILLED * room:
        widest = all(chosen[group] == max(choice.size) for group, choice in choices.items())
        why = "every layer has the widest code that was offered" if widest else "no choice of these widths comes nearer"
        said.append(f"{(room - taken) / 8e6:.2f} MB are left: {why}; --widths offers others")
    controls = {"one width": uniform(choices, room), "widths at random": at_random(choices, room, seed=0)}
    beside = ", ".join(
        f"{name} {damage_in_all(choices, each):.5f} ({size_of(choices, each) / weights:.3f} bits)" for name, each in controls.items()
    )
    said.append(f"predicted KL, the sum over layers rounded to nearest: {damage_in_all(choices, chosen):.5f} nats a token; {beside}")
    return said


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
