"""What rounding single layers costs, and the memory that finding it out takes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from qlab.artifacts.budget import predict
from qlab.evaluate.damage.cost import choosing_bytes, damage_of
from qlab.evaluate.quality import measure_quality
from qlab.methods.rtn import rtn
from qlab.models.loading import load
from qlab.models.opening import OpenedModel
from qlab.recipes import parse
from qlab.support.errors import UserError


def rounding(weight: Tensor, width: int) -> Tensor:
    return rtn(weight, width, 64, True).dequantize()


def test_a_layer_costs_what_the_model_moves_by_when_it_alone_is_rounded(tiny: OpenedModel, calibration: Tensor) -> None:
    model, other = load(tiny), load(tiny)
    name = "model.layers.1.mlp.up_proj"
    exact = {key: value.clone() for key, value in model.state_dict().items()}
    groups = {"a": [name], "b": ["model.layers.0.self_attn.o_proj"]}
    found = damage_of(model, groups, dict.fromkeys(groups, (2, 8)), calibration[:3], rounding)
    assert all(torch.equal(value, exact[key]) for key, value in model.state_dict().items())
    layer = other.get_submodule(name)
    layer.weight.data = rounding(layer.weight.data, 2)  # type: ignore[arg-type, union-attr]
    assert found["a"][2] == measure_quality(other, calibration[:3], model).kl
    assert all(each[2] > 10 * each[8] for each in found.values())


def test_the_model_that_widths_are_chosen_with_is_counted(tiny: OpenedModel) -> None:
    weights = 4 * sum(math.prod(shape) for shape in tiny.layout.shapes.values())
    found = choosing_bytes(tiny, 8, 64)
    assert found > weights + 8 * 64 * 4096 * 4
    assert choosing_bytes(tiny, 8, 128) - found == pytest.approx((8 + 2) * 64 * 4096 * 4 + 2 * 8 * 64 * 256 * 4)
    plan = predict(tiny, [parse("rtn-w4g64-ct")], (8, 64), choosing=10e9)
    assert plan.total == plan.start + 10e9
    assert "to choose widths, the whole model is in memory: 10.00 GB" in plan.text()
    with pytest.raises(UserError, match="to choose widths"):
        predict(tiny, [parse("rtn-w4g64-ct")], (8, 64), 8e9, choosing=10e9)
