"""Lesson 1: bits, groups, channels, and activations."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from torch import Tensor

from qlab.evaluate.quality import Quality
from qlab.show.drawing import shown
from qlab.show.titles.distances import order
from qlab.workbook.experiments import short_name
from qlab.workbook.language.spoken import say

LARGE = 10  # times the median channel: what the claim of AWQ's paper is read as (qlab/claims)
INT8 = ("weights", "weights and activations", "the same, migrated")  # rows of `eight_bits`


def memory(sizes: Mapping[str, float]) -> str:
    """GB of a 70B's weights by format: what 4 bits a weight take with all that they need."""
    real, quarter = sizes["AWQ/GPTQ INT4 g128"], sizes["FP16"] / 4
    values = {"real": real, "quarter": quarter, "more": real / quarter - 1}
    if real > 1.005 * quarter:
        return say("A 70B in INT4 takes {real:.1f} GB, {more:.0%} more than a quarter of FP16 ({quarter:.1f} GB)", **values)
    return say("A 70B in INT4 takes {real:.1f} GB, no more than a quarter of FP16", **values)


def staircase(layer: str, bits: int, weights: Tensor, rounded: Tensor) -> str:
    """How many values are left of a group of weights, and what that costs."""
    error = float((rounded - weights).square().sum() / weights.square().sum().clamp(min=1e-30))
    return say(
        "{layer}: at {bits} bits {count} weights take {values} different values; squared error {error} %",
        layer=short_name(layer), bits=bits, count=weights.numel(), values=len(rounded.unique()), error=shown(100 * error),
    )  # fmt: skip


def ladder(quality: Mapping[str, Quality]) -> str:
    """By what factor KL grows with the last two bits taken away, and whether bad rounding costs more than a bit."""
    kl = {name: max(found.kl or 0.0, 1e-12) for name, found in quality.items()}
    third, second = kl["int3"] / kl["int4"], kl["int2"] / kl["int3"]
    if second > third:
        steps = say("From 3 to 2 bits KL grows {second:.1f} times, more than from 4 to 3 bits ({third:.1f} times)",
                    third=third, second=second)  # fmt: skip
    else:
        steps = say("From 3 to 2 bits KL grows {second:.1f} times, no more than from 4 to 3 bits ({third:.1f} times)",
                    third=third, second=second)  # fmt: skip
    down = order(quality["int4, rounded down"], quality["int3"])
    if down > 0:
        return say("{steps}; 4 bits rounded down are farther from the original than 3 bits rounded to nearest", steps=steps)
    if down < 0:
        return say("{steps}; 4 bits rounded down are nearer to the original than 3 bits rounded to nearest", steps=steps)
    return say("{steps}; 4 bits rounded down are not told apart from 3 bits rounded to nearest", steps=steps)


def group_size(layer: str, table: pd.DataFrame, show: str) -> str:
    """The smallest groups against the largest, at 4 bits, in the column `show` of a `group_size_table`."""
    at = table[table["bits"] == 4].set_index("group")[show]
    small, large = int(at.index.min()), int(at.index.max())
    values = {"layer": short_name(layer), "small": small, "large": large}
    if small == large:
        return say("{layer}: of these sizes only groups of {large} divide the rows", **values)
    if show == "bits/weight":
        return say("{layer}: at 4 bits, groups of {small} take {more:.2f} bits a weight more than groups of {large}",
                   more=at[small] - at[large], **values)  # fmt: skip
    share = at[small] / at[large]
    if share < 1:
        return say("{layer}: at 4 bits, groups of {small} leave {share:.0%} of the error of groups of {large}", share=share, **values)
    return say("{layer}: at 4 bits, groups of {small} have no less error than groups of {large} ({share:.0%})", share=share, **values)


def channels(ratios: Mapping[str, float]) -> str:
    """Largest over median channel by layer: how many layers have a channel that is LARGE."""
    most = max(ratios, key=lambda layer: ratios[layer])
    count = sum(ratio >= LARGE for ratio in ratios.values())
    values = {"layer": most, "ratio": ratios[most], "limit": LARGE}
    if not count:
        return say("No layer has a channel {limit} times its median channel; the most is {ratio:.1f} times, in {layer}", **values)
    return say("Layers with a channel of at least {limit} times their median channel: {count}; the most is {ratio:.1f} times, in {layer}",
               count=count, **values)  # fmt: skip


def eight_bits(quality: Mapping[str, Quality]) -> str:
    """What rounding the activations costs beside that of the weights, and what the migration wins back of it."""
    if not set(INT8) <= set(quality):
        return say("INT8 weights alone are at KL {kl}", kl=shown(quality["weights"].kl or 0.0))
    weights, both, migrated = (quality[name] for name in INT8)
    if order(both, weights) <= 0:
        return say("Rounding activations to INT8 as well costs nothing beyond the error of the measurement")
    cost = (both.kl or 0.0) - (weights.kl or 0.0)
    values = {"times": (both.kl or 0.0) / max(weights.kl or 0.0, 1e-12), "share": abs((both.kl or 0.0) - (migrated.kl or 0.0)) / cost}
    turned = order(migrated, both)
    if turned < 0:
        return say("Rounding activations too makes KL {times:.1f} times as large; the migration takes back {share:.0%} of that", **values)
    if turned > 0:
        return say("Rounding activations too makes KL {times:.1f} times as large; the migration adds {share:.0%} to that", **values)
    return say("Rounding activations too makes KL {times:.1f} times as large; the migration changes nothing beyond the error", **values)
