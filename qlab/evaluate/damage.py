"""A budget of bits, spent by damage: how far the predictions move when one group of layers is rounded and nothing else.

The whole model is in memory, and runs the windows once for each group and width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from qlab.evaluate.kept import kept_logits
from qlab.evaluate.quality import measure_quality
from qlab.methods.rtn import rtn
from qlab.methods.widths import Choice, at_random, damage_in_all, least_damage, size_of, uniform
from qlab.models.loading import load
from qlab.models.opening import OpenedModel
from qlab.recipes.fitting import layers_of
from qlab.recipes.integers import Integers
from qlab.recipes.mixed import HALF, Mixed, mixed, of_one_width, stored_bits
from qlab.support.errors import UserError
from qlab.support.progress import progress
from qlab.support.wording import first_and_number

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
        layers = [model.get_submodule(name) for name in names]
        exact = [layer.get_parameter("weight").data for layer in layers]
        found[group] = {}
        for width in widths[group]:
            for layer, weight in zip(layers, exact):
                layer.get_parameter("weight").data = rounding(weight, width).to(weight.dtype)
            found[group][width] = max(measure_quality(model, windows, expected, group).kl or 0.0, 0.0)
        for layer, weight in zip(layers, exact):
            layer.get_parameter("weight").data = weight
    return found


def choose_widths(
    source: OpenedModel, recipe: Integers, bits: float, widths: Sequence[int], asked: Mapping[str, int], windows: Tensor, device: str
) -> tuple[Mixed, list[str]]:  # fmt: skip
    """`recipe` with those of `widths` for its layers that cost least at so many `bits` a weight, scales and zero points included; and what
    was chosen, in sentences. Layers are rounded to nearest for this, whatever the recipe does.

    `asked`: widths that patterns (regular expressions, of whole names) ask for, HALF among them; the last that fits a layer decides for all
    that runtimes join to it.

    Raises:
        UserError: as damage_of and least_damage, or a pattern that is none, or fits no layer.
    """
    shapes = layers_of(source.layout)
    left = recipe.unquantized(shapes)
    groups = of_one_width([name for name in shapes if name not in left])
    fixed = widths_asked(groups, asked)
    rounded = {group: names for group, names in groups.items() if fixed.get(group) != HALF}
    tried = {group: [fixed[group]] if group in fixed else list(widths) for group in rounded}

    def rounding(weight: Tensor, width: int) -> Tensor:
        return rtn(weight, width, recipe.group_size, recipe.symmetric).dequantize()

    model = load(source, torch.float32, device, apart=True)
    damage = damage_of(model, rounded, tried, windows, rounding)
    damage |= {group: {HALF: 0.0} for group in groups if group not in rounded}
    choices = {}
    for group, names in groups.items():
        each = [shapes[name] for name in names]
        size = {width: sum(stored_bits(recipe, width, inputs) * outputs * inputs for outputs, inputs in each) for width in damage[group]}
        choices[group] = Choice(size, damage[group])
    weights = sum(shapes[name][0] * shapes[name][1] for names in groups.values() for name in names)
    chosen = least_damage(choices, bits * weights)
    by_layer = {name: width for group, width in chosen.items() for name in groups[group]}
    told = [f"{size_of(choices, chosen) / weights:.3f} bits a weight of the {len(by_layer)} layers that are quantized, scales included:"]
    for width in sorted(set(by_layer.values())):
        names = [name for name in by_layer if by_layer[name] == width]
        told.append(f"  {'half precision' if width == HALF else f'{width} bits'}: {len(names)} layers ({first_and_number(names)})")
    controls = {"one width": uniform(choices, bits * weights), "widths at random": at_random(choices, bits * weights, seed=0)}
    beside = ", ".join(
        f"{name} {damage_in_all(choices, each):.5f} ({size_of(choices, each) / weights:.3f} bits)" for name, each in controls.items()
    )
    told.append(f"predicted KL, the sum over layers rounded to nearest: {damage_in_all(choices, chosen):.5f} nats a token; {beside}")
    return mixed(recipe, by_layer, bits), told


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
