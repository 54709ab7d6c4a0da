"""Widths by budget: how many bits each group of layers gets, so that the predicted damage is least at a size.

What a group costs at a width is how far the model's predictions move when that group alone is rounded. The damage of a choice is taken
for the sum of these, as rounding errors of different layers have no common sign. To choose is then a knapsack of which each group takes
one item: an integer program, solved by HiGHS (scipy). Here a width may be anything that has a size and an order: bits, or bits and how
many weights share a scale (qlab.recipes.mixed.Way).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from qlab.support.errors import UserError

W = TypeVar("W", bound=Any)


@dataclass(frozen=True)
class Choice(Generic[W]):
    """What a group of layers takes at each width that it may have, in bits, and what it costs there, in nats a token."""

    size: Mapping[W, float]
    damage: Mapping[W, float]


def least_damage(choices: Mapping[str, Choice[W]], room: float) -> dict[str, W]:
    """The width of each group: of all choices whose sizes fit into `room` bits together, one of least damage; then wider codes where room
    is left, since measured damage is not free of noise and a wider code may seem to cost more.

    Raises:
        UserError: even the smallest do not fit.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    check_room(choices, room)
    items = [(group, width) for group, choice in choices.items() for width in choice.size]
    rows = {group: row for row, group in enumerate(choices)}
    of_group = csr_array((np.ones(len(items)), ([rows[group] for group, _ in items], range(len(items)))), (len(rows), len(items)))
    damage = np.array([choices[group].damage[width] for group, width in items])
    size = np.array([choices[group].size[width] for group, width in items])
    found = milp(
        damage / max(float(damage.max()), 1e-300),
        integrality=np.ones(len(items)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(of_group, 1, 1), LinearConstraint(size[None] / room, 0, 1)],
        options={"mip_rel_gap": 0},
    )
    return widened(choices, {group: width for (group, width), taken in zip(items, found.x) if taken > 0.5}, room, list(choices))


def uniform(choices: Mapping[str, Choice[W]], room: float) -> dict[str, W]:
    """A control: of the widths that all groups have room for, that of least damage; groups that may not have it have their nearest.

    Raises:
        UserError: even the smallest do not fit.
    """
    check_room(choices, room)
    order = {width: place for place, width in enumerate(sorted({width for choice in choices.values() for width in choice.size}))}

    def all_at(width: W) -> dict[str, W]:
        return {group: min(choice.size, key=lambda own: abs(order[own] - order[width])) for group, choice in choices.items()}

    fitting = [found for found in map(all_at, order) if size_of(choices, found) <= room]
    return min(fitting, key=lambda found: (damage_in_all(choices, found), -size_of(choices, found)), default=smallest(choices))


def at_random(choices: Mapping[str, Choice[W]], room: float, seed: int) -> dict[str, W]:
    """A control: groups in an order drawn at random, each given its next width while there is room, over and over.

    Raises:
        UserError: even the smallest do not fit.
    """
    check_room(choices, room)
    groups = list(choices)
    return widened(choices, smallest(choices), room, [groups[index] for index in np.random.default_rng(seed).permutation(len(groups))])


def widened(choices: Mapping[str, Choice[W]], widths: Mapping[str, W], room: float, order: Sequence[str]) -> dict[str, W]:
    """`widths`, each group in this order given its next width while there is `room`, over and over."""
    found, left, grown = dict(widths), room - size_of(choices, widths), True
    while grown:
        grown = False
        for group in order:
            size = choices[group].size
            wider = sorted((width for width in size if size[width] > size[found[group]]), key=size.__getitem__)
            if wider and size[wider[0]] - size[found[group]] <= left:
                left -= size[wider[0]] - size[found[group]]
                found[group], grown = wider[0], True
    return found


def damage_in_all(choices: Mapping[str, Choice[W]], widths: Mapping[str, W]) -> float:
    """What all groups cost together, in nats a token."""
    return sum(choice.damage[widths[group]] for group, choice in choices.items())


def size_of(choices: Mapping[str, Choice[W]], widths: Mapping[str, W]) -> float:
    """Bits that all groups take."""
    return sum(choice.size[widths[group]] for group, choice in choices.items())


def smallest(choices: Mapping[str, Choice[W]]) -> dict[str, W]:
    """Each group at the width that takes least."""
    return {group: min(choice.size, key=choice.size.__getitem__) for group, choice in choices.items()}


def check_room(choices: Mapping[str, Choice[W]], room: float) -> None:
    """Raise a UserError where not even the smallest widths fit into `room` bits."""
    least = size_of(choices, smallest(choices))
    if least > room:
        raise UserError(
            f"the smallest widths take {least / 8e6:.2f} MB, more than the {room / 8e6:.2f} MB asked for: ask for more bits a weight, or "
            "allow smaller widths"
        )
