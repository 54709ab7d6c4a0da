"""The weight that stands out, and what it costs the others of its group."""

from __future__ import annotations

import pytest
import torch

from qlab.methods.rtn import rtn
from qlab.workbook.drawn.outlier import outlier_of, worst_outlier


@pytest.fixture
def weight() -> torch.Tensor:
    found = torch.randn(20, 96, generator=torch.Generator().manual_seed(1))
    found[13, 70] = -30
    return found


def test_an_outlier_is_found_and_its_cost_is_that_of_the_others_alone(weight: torch.Tensor) -> None:
    found = outlier_of("q", weight, 32, 4)
    assert (found.row, found.channel, found.place) == (13, 70, 6)
    group = weight[13:14, 64:96]
    others = [place for place in range(32) if place != 6]
    expected = [
        float((rounded - group[:, others]).square().sum() / group[:, others].square().sum())
        for rounded in (rtn(group, 4, -1).dequantize()[:, others], rtn(group[:, others], 4, -1).dequantize())
    ]
    assert [found.error(found.weights), found.error(found.others)] == pytest.approx(expected)
    assert found.harm == pytest.approx(expected[0] / expected[1])
    assert found.wider == pytest.approx(float(rtn(group, 4, -1).scales / rtn(group[:, others], 4, -1).scales))
    assert found.harm > 10


def test_a_larger_outlier_does_more_harm_and_leaves_the_others_as_they_are(weight: torch.Tensor) -> None:
    found = outlier_of("q", torch.randn(20, 96, generator=torch.Generator().manual_seed(2)), 32, 4)
    large = found.enlarged(8)
    assert float(large.weights[large.place]) == 8 * float(found.weights[found.place])
    assert torch.equal(large.others, found.others)
    assert large.wider > 3 * found.wider
    assert large.harm > found.harm


def test_the_levels_are_those_that_the_group_is_rounded_to(weight: torch.Tensor) -> None:
    found = outlier_of("q", weight, 32, 3)
    values = rtn(found.weights[None], 3, -1).dequantize()[0]
    assert float((values[:, None] - found.levels(found.weights)[None]).abs().amin(1).max()) < 1e-5
    assert found.levels(found.weights).diff().tolist() == pytest.approx([found.step(found.weights)] * 7, rel=1e-4)


def test_the_worst_of_several_layers_is_taken(weight: torch.Tensor) -> None:
    calm = torch.randn(20, 64, generator=torch.Generator().manual_seed(3))
    assert worst_outlier({"calm": calm, "wild": weight}, 32, 4).layer == "wild"


def test_a_layer_of_zeros_has_no_error() -> None:
    found = outlier_of("q", torch.zeros(4, 32), 32, 4)
    assert (found.error(found.weights), found.harm, found.wider) == (0, 0, 1)
