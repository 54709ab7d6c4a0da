"""What a budget leaves for layers, against the planner's own arithmetic."""

from __future__ import annotations

import math

import pytest

from qlab.artifacts.room import of_bits, of_size, on_card
from qlab.models.opening import OpenedModel
from qlab.plan.capacity import capacity
from qlab.plan.plan import cache_bytes
from qlab.plan.shapes import config_shape, find_device
from qlab.recipes import parse
from qlab.recipes.fitting import layers_of
from qlab.recipes.mixed import check_mixable
from qlab.support.errors import UserError


def test_bits_are_of_the_layers_that_are_quantized(tiny: OpenedModel) -> None:
    layers = {name: shape for name, shape in layers_of(tiny.layout).items() if "mlp" in name}
    recipe = check_mixable(parse("rtn-w4g64-ct"))
    assert of_bits(4.25).room(tiny, recipe, layers) == 4.25 * sum(math.prod(shape) for shape in layers.values())


def test_a_card_holds_weights_beside_the_cache(tiny: OpenedModel) -> None:
    shape, card = config_shape(tiny.config, tiny.name), find_device("RTX 4090")
    context = 10_000_000
    found = on_card(tiny, "RTX 4090", context, 1)
    assert found.size is not None
    room = 0.9 * 24e9 - cache_bytes(shape, context)
    assert 0.99 * room < found.size <= room
    assert found.label == f"{found.size / 1e9:g}GB"
    assert len(found.label) <= len("0.0123GB")
    counted = capacity(shape, "FP16", context, 1, card, 1)
    assert found.size / 1e9 + counted.cache <= counted.usable
    smaller = on_card(tiny, "RTX 4090", context, 1, "q8_0").size
    assert smaller
    assert smaller > found.size
    with pytest.raises(UserError, match="the KV cache of 3 sequences of 10,000,000 tokens takes"):
        on_card(tiny, "RTX 4090", context, 3)


@pytest.mark.parametrize(("size", "label"), [(4.5e9, "4.5GB"), (3.3e6, "3.3MB"), (0.25e9, "0.25GB")])
def test_sizes_in_names(size: float, label: str) -> None:
    assert of_size(size).label == label


def test_what_is_not_quantized_must_fit(tiny: OpenedModel) -> None:
    with pytest.raises(UserError, match="what is not quantized"):
        of_size(1e6).room(tiny, check_mixable(parse("rtn-w4g64-ct")), layers_of(tiny.layout))
