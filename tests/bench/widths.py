"""Widths by budget against one width for all and against widths at random, each of one size, on any model and device.

    python -m tests.bench.widths --model embedded --bits 4.25 3.5 --windows 40
    python -m tests.bench.widths --model smollm2 --device cuda --text wiki.test --calibration wiki.train

For each budget: every recipe of one width and group size that is no larger, quantized by GPTQ; of both signs of grids, layers' widths and
groups chosen by what they cost, with and without a choice of group sizes; and the control, drawn at random in the same size. How far the
chosen one is from the nearest of one width, window by window, is printed last. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from qlab.evaluate.damage.widths import choices_of
from qlab.methods.widths import Choice, at_random, damage_in_all, least_damage, size_of, smallest
from qlab.recipes import parse
from qlab.recipes.fitting import layers_of
from qlab.recipes.integers import Integers
from qlab.recipes.mixed import Way, check_mixable, mixed, of_one_width, offered_ways, stored_bits
from qlab.support.wording import counted
from qlab.workbook.lesson import quiet
from tests.bench.rows import Table, change, opened, subject_options

WIDTHS, SIZES = (2, 3, 4, 5, 6, 8), (32, 64, 128)
JUDGED = 8  # calibration windows, as the command has it
BELOW = 0.6  # bits: narrower recipes of one width are not tried


def whole_model(recipe: Integers, layers: dict[str, tuple[int, int]]) -> float:
    """Bits a weight of all layers, scales and zero points included."""
    weights = sum(math.prod(shape) for shape in layers.values())
    return sum(stored_bits(recipe, recipe.bits, shape[1]) * math.prod(shape) for shape in layers.values()) / weights


def of_one(table: Table, layers: dict[str, tuple[int, int]], budgets: list[float]) -> dict[str, float]:
    """Rows of the recipes of one width that come near a budget from below, and their bits a weight."""
    names = [f"gptq-w{bits}g{size}{sign}-ct" for bits in (2, 3, 4) for size in SIZES for sign in ("", "-asym")]
    found = {name: whole_model(check_mixable(parse(name)), layers) for name in names}
    near = {name: bits for name, bits in found.items() if any(budget - BELOW < bits <= 1.001 * budget for budget in budgets)}
    table.recipes(parse(name) for name in sorted(near, key=lambda name: near[name]))
    return {name: bits for name, bits in near.items() if name in table.found}


def of_size(figures: Mapping[Way, float], size: int) -> dict[Way, float]:
    """Those of the ways with groups of this size."""
    return {way: figure for way, figure in figures.items() if way.size == size}


def chosen(table: Table, recipe: Integers, layers: dict[str, tuple[int, int]], budgets: list[float], model: nn.Module) -> list[str]:
    """Rows of layers' widths by what they cost, in the recipe's groups and in groups of several sizes, and of widths at random."""
    groups, weights, wanted = of_one_width(list(layers)), sum(math.prod(shape) for shape in layers.values()), []
    offered = {group: offered_ways(recipe, WIDTHS, SIZES, [layers[name][1] for name in members]) for group, members in groups.items()}
    started, windows = time.perf_counter(), table.subject.calibration[:JUDGED]
    choices = choices_of(model, recipe, layers, offered, groups, windows)
    own = {group: Choice(*(of_size(part, recipe.group_size) for part in (one.size, one.damage))) for group, one in choices.items()}
    ways = sum(map(len, offered.values()))
    print(f"{recipe.name}: {counted(ways, 'way')} of {counted(len(groups), 'group')} judged in {time.perf_counter() - started:.0f} s")
    for budget in budgets:
        room = budget * weights
        if size_of(own, smallest(own)) > room:
            continue
        for label, some, found in (
            ("", own, least_damage(own, room)),
            ("-groups", choices, least_damage(choices, room)),
            ("-random", own, at_random(own, room, seed=0)),  # of several group sizes one way for all may fill the budget: no control
        ):
            by_layer = {name: way for group, way in found.items() for name in groups[group]}
            one = mixed(recipe, by_layer, f"{budget:g}{label}")
            print(f"{one.name}: {size_of(some, found) / weights:.3f} bits a weight, predicted {damage_in_all(some, found):.5f} by RTN")
            wanted.append(one)
    table.recipes(wanted)
    return [one.name for one in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subject_options(parser)
    parser.add_argument("--bits", type=float, nargs="+", default=[4.25, 3.5])
    options = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory(prefix="qlab-bench-") as scratch:
        table, original = opened(options, options.work or Path(scratch))
        shapes = {name: (shape[0], shape[1]) for name, shape in layers_of(table.subject.source.layout).items()}
        recipes = [check_mixable(parse(name)) for name in ("gptq-w4g128-ct", "gptq-w4g128-asym-ct")]
        recipes = [check_mixable(recipe.fitted(table.subject.source).recipe) for recipe in recipes]
        left = recipes[0].unquantized(shapes)
        layers = {name: shape for name, shape in shapes.items() if name not in left}
        alike = of_one(table, layers, options.bits)
        names = [name for recipe in recipes for name in chosen(table, recipe, layers, options.bits, original)]
        for budget in options.bits:
            fitting = [name for name, bits in alike.items() if bits <= 1.001 * budget]
            best = min(fitting, key=lambda name: table.found[name].kl or 0.0)
            print(f"at {budget:g} bits a weight, of one width the nearest is {best} ({alike[best]:.3f} bits); window by window:")
            for name in names:
                if f"-mixed{budget:g}" in name and name in table.found:
                    print(f"  {name}: KL {change(table.found[name], table.found[best])}")


if __name__ == "__main__":
    main()
