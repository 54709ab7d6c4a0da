"""Widths by budget against every choice there is, and against its controls."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.methods.widths import Choice, at_random, damage_in_all, least_damage, size_of, uniform
from qlab.support.errors import UserError


def drawn(groups: int, widths: tuple[int, ...], seed: int) -> dict[str, Choice]:
    """Groups of unequal sizes and sensitivities; damage falls by 4 a bit, but for noise."""
    generator = np.random.default_rng(seed)
    found = {}
    for index in range(groups):
        weights, sensitivity = int(generator.integers(1, 9)) * 1024, float(generator.lognormal(0, 1.5))
        damage = {width: sensitivity * 4.0**-width * float(generator.uniform(0.8, 1.25)) for width in widths}
        found[f"group {index}"] = Choice({width: weights * (width + 0.125) for width in widths}, damage)
    return found


def room_of(choices: dict[str, Choice], bits: float) -> float:
    """Bits in all, for so many a weight."""
    return sum(next(iter(choice.size.values())) / (next(iter(choice.size)) + 0.125) for choice in choices.values()) * bits


@settings(max_examples=30, deadline=None)
@given(groups=st.integers(1, 6), seed=st.integers(0, 1000), bits=st.floats(3.2, 9))
def test_no_choice_of_this_size_costs_less(groups: int, seed: int, bits: float) -> None:
    choices = drawn(groups, (3, 4, 8), seed)
    room = room_of(choices, bits)
    found = least_damage(choices, room)
    assert size_of(choices, found) <= room * (1 + 1e-6)
    every = (dict(zip(choices, widths)) for widths in itertools.product((3, 4, 8), repeat=groups))
    assert damage_in_all(choices, found) <= min(damage_in_all(choices, each) for each in every if size_of(choices, each) <= room) * (
        1 + 1e-6
    )


def test_it_costs_less_than_its_controls_of_the_same_size() -> None:
    choices = drawn(224, (3, 4, 5, 6, 8), 1)
    room = room_of(choices, 4.5)
    found = least_damage(choices, room)
    assert found == least_damage(choices, room)
    assert 0.995 * room < size_of(choices, found) <= room * (1 + 1e-6)
    even = uniform(choices, room)
    assert set(even.values()) == {4}
    assert damage_in_all(choices, found) < 0.7 * damage_in_all(choices, even)
    for seed in range(3):
        chance = at_random(choices, room, seed)
        assert 0.99 * room < size_of(choices, chance) <= room
        assert set(chance.values()) == {4, 5}
        assert damage_in_all(choices, found) < 0.8 * damage_in_all(choices, chance)


def test_a_group_of_one_width_keeps_it() -> None:
    choices = drawn(4, (4, 8), 2)
    choices["group 0"] = Choice({16: 16.0 * 1024}, {16: 0.0})
    for found in (least_damage(choices, 1e9), uniform(choices, 1e9), at_random(choices, 1e9, 0)):
        assert found == {"group 0": 16, "group 1": 8, "group 2": 8, "group 3": 8}


def test_widths_may_be_bits_and_groups_and_one_for_all_is_then_the_best_of_them() -> None:
    ways = {(3, 32): (3.5, 9.0), (4, 128): (4.125, 4.0), (4, 64): (4.25, 3.0), (5, 128): (5.0, 0.8)}
    choices = {
        f"group {index}": Choice(
            {way: 1024 * bits for way, (bits, _) in ways.items()}, {way: cost * weight for way, (_, cost) in ways.items()}
        )
        for index, weight in enumerate((1.0, 0.01, 0.02, 5.0))
    }
    room = 4 * 1024 * 4.25
    assert set(uniform(choices, room).values()) == {(4, 64)}
    found = least_damage(choices, room)
    assert size_of(choices, found) <= room * (1 + 1e-6)
    assert (found["group 1"], found["group 3"]) == ((3, 32), (5, 128))
    assert damage_in_all(choices, found) <= damage_in_all(choices, uniform(choices, room))


def test_of_widths_for_all_that_with_least_damage_is_the_control_not_the_largest() -> None:
    choices = {"a": Choice({3: 3.0, 4: 4.0}, {3: 1.0, 4: 2.0}), "b": Choice({3: 3.0, 4: 4.0}, {3: 1.0, 4: 1.5})}
    assert uniform(choices, 8.0) == {"a": 3, "b": 3}


def test_what_does_not_fit_is_refused() -> None:
    choices = drawn(4, (4, 8), 3)
    for choose in (least_damage, uniform, lambda choices, room: at_random(choices, room, 0)):
        with pytest.raises(UserError, match="the smallest widths take"):
            choose(choices, room_of(choices, 4))
