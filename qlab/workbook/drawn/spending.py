"""Bits where they count: a budget spent by what each layer costs alone, measured beside one width for all and widths drawn at random.

The same functions choose for `qlab quantize --bits`. Layers are rounded to nearest here, so that only the choice of widths differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from statistics import fmean
from typing import Any

from torch import Tensor

from qlab.evaluate.damage.widths import choices_of
from qlab.evaluate.quality import Quality, measure_quality
from qlab.methods.rtn import rtn
from qlab.methods.widths import Choice, at_random, damage_in_all, least_damage, size_of, uniform
from qlab.recipes import parse
from qlab.recipes.mixed import check_mixable, of_one_width
from qlab.support.wording import Sentence
from qlab.workbook.lesson import Lesson

WIDTHS = (3, 4, 6, 8)
BUDGET = 4.5  # bits a weight, scales included
WINDOWS = 2  # of the calibration text, by which layers are judged
JUDGED = 8  # windows of the evaluation text at most, by which choices are
SEEDS, STEPS = 4, 13  # draws at random of which the mean is shown; sizes along a curve
CHOSEN, ALIKE, RANDOM = "by what each layer costs", "one width for all", "widths at random"


@dataclass(frozen=True)
class Spent:
    """`widths`: of each layer, by the way to choose, within a budget of BUDGET; `bits` a weight that it takes, scales included. `predicted`
    and `measured` KL, nats a token; `curves`: predicted KL against bits a weight."""

    bits: Mapping[str, float]
    widths: Mapping[str, dict[str, int]]
    predicted: Mapping[str, float]
    measured: Mapping[str, Quality]
    curves: Mapping[str, list[tuple[float, float]]]

    def as_dict(self) -> dict[str, Any]:
        """For a record."""
        return {
            "bits": dict(self.bits), "predicted": dict(self.predicted), "widths": dict(self.widths),
            "measured": {name: {"kl": each.kl, "kl_stderr": each.kl_stderr} for name, each in self.measured.items()},
        }  # fmt: skip

    def lines(self) -> list[Sentence]:
        """What was found, a sentence for each choice, each with its own size: one width for all seldom fills the budget."""
        text = "{way}: {bits:.2f} bits a weight, KL predicted {predicted:.4f}, measured {kl:.4f} ± {error:.4f}"
        return [
            Sentence(text, way=name, bits=self.bits[name], predicted=self.predicted[name], kl=each.kl, error=each.kl_stderr)
            for name, each in self.measured.items()
        ]


def spend(lesson: Lesson) -> Spent:
    """Judge the layers of the lesson's sample at each of WIDTHS, choose, and measure what was chosen on the evaluation text."""
    recipe = check_mixable(parse(f"rtn-w4g{lesson.group_size}-sym-ct"))
    layers = {name: tuple(layer.weight.shape) for name, layer in lesson.sample.items()}
    groups = of_one_width(list(layers))
    offered = dict.fromkeys(groups, WIDTHS)
    choices = choices_of(lesson.reference, recipe, layers, offered, groups, lesson.calibration[:WINDOWS])
    weights = sum(prod(shape) for shape in layers.values())
    room = BUDGET * weights
    chosen = {CHOSEN: least_damage(choices, room), RANDOM: at_random(choices, room, seed=0), ALIKE: uniform(choices, room)}
    widths = {how: {name: width for group, width in found.items() for name in groups[group]} for how, found in chosen.items()}

    def rounded(name: str, weight: Tensor, own: Mapping[str, int]) -> Tensor:
        return rtn(weight, own[name], recipe.group_size, recipe.symmetric).dequantize()

    def judged(how: str) -> Quality:
        with lesson.with_weights(partial(rounded, own=widths[how]), widths[how]) as changed:
            return measure_quality(changed, lesson.evaluation[:JUDGED], lesson.expected, how)

    return Spent(
        {how: size_of(choices, found) / weights for how, found in chosen.items()},
        widths,
        {how: damage_in_all(choices, found) for how, found in chosen.items()},
        {how: judged(how) for how in widths},
        curves_of(choices, weights),
    )


def curves_of(choices: Mapping[str, Choice], weights: int) -> dict[str, list[tuple[float, float]]]:
    """(bits a weight, predicted KL) of each way to choose, over sizes from all groups at their narrowest to all at their widest, those of
    one width for all and the budget's among them; of widths at random the mean of SEEDS draws."""
    sizes = [size_of(choices, dict.fromkeys(choices, width)) for width in WIDTHS]
    rooms = sorted({*sizes, BUDGET * weights, *(sizes[0] + (sizes[-1] - sizes[0]) * step / (STEPS - 1) for step in range(STEPS))})
    found: dict[str, list[tuple[float, float]]] = {CHOSEN: [], RANDOM: [], ALIKE: []}
    for room in rooms:
        best = least_damage(choices, room)
        found[CHOSEN].append((size_of(choices, best) / weights, damage_in_all(choices, best)))
        drawn = [at_random(choices, room, seed) for seed in range(SEEDS)]
        place = fmean(size_of(choices, each) for each in drawn) / weights
        found[RANDOM].append((place, fmean(damage_in_all(choices, each) for each in drawn)))
    for size in sizes:
        found[ALIKE].append((size / weights, damage_in_all(choices, uniform(choices, size))))
    return found
