"""The channel that stands out, and what it costs the others of its group."""

from __future__ import annotations

import pytest
import torch

from qlab.methods.rtn import rtn
from qlab.workbook.drawn.outlier import worst_channel


def test_an_outlier_is_found_and_its_cost_is_that_of_the_others_alone() -> None:
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(1))
    weight[:, 70] *= 12
    found = worst_channel(weight, 32, 4)
    assert (found.channel, found.place) == (70, 6)
    assert 8 < found.times < 18
    group = weight[:, 64:96]
    others = [place for place in range(32) if place != 6]
    beside = (rtn(group, 4, -1).dequantize() - group)[:, others]
    assert found.error_with == pytest.approx(float(beside.square().sum() / group[:, others].square().sum()))
    assert found.error_without == pytest.approx(
        float((rtn(group[:, others], 4, -1).dequantize() - group[:, others]).square().sum() / group[:, others].square().sum())
    )
    assert found.error_with > 4 * found.error_without
    assert torch.equal(found.weights, weight[found.row, 64:96])
    assert abs(float(found.weights[6])) == float(weight[:, 70].abs().max())


def test_the_levels_are_those_that_the_row_is_rounded_to() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(4))
    found = worst_channel(weight, 32, 3)
    first = found.channel // 32 * 32
    values = rtn(weight[:, first : first + 32], 3, -1).dequantize()[found.row]
    distances = (values[:, None] - found.levels_with[None]).abs().amin(1)
    assert float(distances.max()) < 1e-6
    assert len(found.levels_with) == len(found.levels_without) == 8
    assert float(found.levels_without.diff().max()) <= float(found.levels_with.diff().max()) + 1e-6


def test_a_layer_of_zeros_has_no_error() -> None:
    found = worst_channel(torch.zeros(4, 32), 32, 4)
    assert (found.error_with, found.error_without) == (0, 0)
