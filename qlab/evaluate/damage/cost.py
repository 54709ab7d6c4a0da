"""What rounding a group of layers costs: how far the predictions move when it is rounded and nothing else.

The whole model is in memory, and runs the windows once for each group and width, from the group's block on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from qlab.artifacts.budget import LIBRARIES
from qlab.evaluate.damage.resumed import FromBlock
from qlab.evaluate.kept import IN_MEMORY, kept_logits
from qlab.evaluate.quality import measure_quality
from qlab.methods.widths import Choice, W, at_random, damage_in_all, size_of, uniform
from qlab.models.opening import OpenedModel
from qlab.models.resting.layers import standing_in
from qlab.support.progress import progress

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
    resumed = FromBlock(model, (name for names in groups.values() for name in names), windows, expected)
    found: dict[str, dict[W, float]] = {group: {} for group in groups}
    in_order = sorted(groups.items(), key=lambda group: resumed.block_of(group[1]))
    for group, names in progress(in_order, "what each layer costs", leave=False):
        layers: list[Any] = [model.get_submodule(name) for name in names]
        resumed.advance(resumed.block_of(names))
        for width in widths[group]:
            with ExitStack() as rounded:
                for layer in layers:
                    rounded.enter_context(standing_in(layer, rounding(layer.weight.data, width)))
                found[group][width] = max(measure_quality(resumed, windows, expected, group).kl or 0.0, 0.0)
    return found


def choosing_bytes(source: OpenedModel, windows: int, length: int) -> float:
    """Bytes that choose_widths takes beside the process, for so many windows of so many tokens: the model in FP32, its predictions as they
    are kept, those of the window at hand, the layer that is rounded, and what two blocks make of all windows."""
    shapes = source.layout.shapes
    predictions = 4.0 * shapes[source.layout.embedding][0] * length
    largest = 4.0 * max(math.prod(shape) for shape in source.layout.linear.values())
    whole = 4.0 * source.layout.weights
    resumed = 2 * 4.0 * source.layout.hidden * windows * length
    return whole + min(windows * predictions, IN_MEMORY) + AT_HAND * predictions + ROUNDED * largest + resumed + LIBRARIES


def controls(choices: Mapping[str, Choice[W]], room: float, weights: int, names: tuple[str, str]) -> str:
    """What is predicted of one width for all and of widths at random, called by these `names`, each with its size."""
    found = dict(zip(names, (uniform(choices, room), at_random(choices, room, seed=0))))
    return ", ".join(
        f"{name} {damage_in_all(choices, each):.5f} ({size_of(choices, each) / weights:.3f} bits)" for name, each in found.items()
    )
