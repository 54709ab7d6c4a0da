"""Orders of the columns: the same grids, GPTQ's own result, and at each place the error that no other weights to come could lower."""

from __future__ import annotations

import pytest
import torch

from qlab.methods.awq import output_error
from qlab.methods.gptq import gptq
from qlab.methods.hessian import damp
from qlab.workbook.drawn.order import DAMPING, GIVEN, LARGEST, MOST, ROWS, SMALLEST, Ordered, damped_signal, in_orders, most_uneven

GENERATOR = torch.Generator().manual_seed(4)
WEIGHT = torch.randn(20, 48, generator=GENERATOR)
INPUTS = torch.randn(300, 48, generator=GENERATOR) + torch.randn(300, 1, generator=GENERATOR)
INPUTS *= torch.rand(48, generator=GENERATOR).mul(3).exp()  # channels of very unequal size
HESSIAN = INPUTS.T @ INPUTS
DAMPED = damp(HESSIAN.double().clone(), DAMPING).float()


@pytest.fixture(scope="module")
def found() -> Ordered:
    return in_orders(WEIGHT, HESSIAN, bits=4)


def test_the_largest_first_is_static_act_order(found: Ordered) -> None:
    own = gptq(WEIGHT, HESSIAN, 4, group_size=-1, order="static").dequantize()
    assert float(found.orders[LARGEST].so_far[-1]) == pytest.approx(output_error(own, WEIGHT, DAMPED), rel=1e-3)
    given = gptq(WEIGHT, HESSIAN, 4, group_size=-1).dequantize()  # one group: its grid is fitted to the weights as they are given
    assert float(found.orders[GIVEN].so_far[-1]) == pytest.approx(output_error(given, WEIGHT, DAMPED), rel=1e-3)


def test_with_unequal_inputs_the_order_counts_and_the_control_is_worst(found: Ordered) -> None:
    ends = {name: float(order.so_far[-1]) for name, order in found.orders.items()}
    assert ends[LARGEST] < 0.95 * ends[GIVEN]
    assert ends[GIVEN] < 0.9 * ends[SMALLEST]
    assert found.gain == pytest.approx(ends[LARGEST] / ends[GIVEN])
    early = {name: float(order.so_far[11]) for name, order in found.orders.items()}
    assert early[SMALLEST] < early[LARGEST]


def test_the_error_so_far_is_the_least_that_the_columns_to_come_can_leave(found: Ordered) -> None:
    order, done = found.orders[SMALLEST], 30
    rounded, to_come = order.places[:done], order.places[done:]
    own = gptq(WEIGHT[:, order.places], HESSIAN[order.places][:, order.places], 4, group_size=-1).dequantize()
    error = torch.zeros(20, 48, dtype=torch.float64)
    error[:, rounded] = (own[:, :done] - WEIGHT[:, rounded]).double()
    damped = DAMPED.double()
    error[:, to_come] = -torch.linalg.solve(damped[to_come][:, to_come], (error[:, rounded] @ damped[rounded][:, to_come]).T).T
    least = ((error @ damped) * error).sum() / ((WEIGHT.double() @ damped) * WEIGHT.double()).sum()
    assert float(order.so_far[done - 1]) == pytest.approx(float(least), rel=1e-2)


def test_channels_are_rounded_from_the_left_or_from_the_right(found: Ordered) -> None:
    assert found.rounded(LARGEST, 10).tolist() == [True] * 10 + [False] * 38
    assert found.rounded(SMALLEST, 10).tolist() == [False] * 38 + [True] * 10
    assert found.rounded(GIVEN, 10).sum() == 10
    assert float(found.sizes.mean()) == pytest.approx(1)


def test_of_a_large_layer_some_rows_and_channels_are_taken() -> None:
    found = in_orders(torch.ones(ROWS + 9, MOST + 40), torch.eye(MOST + 40), bits=4)
    assert found.channels == MOST + 40
    assert all(len(order.so_far) == len(order.places) == MOST for order in found.orders.values())


def test_what_errors_are_relative_to_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    monkeypatch.setattr("qlab.workbook.drawn.order.damped_signal", lambda *given: computed.append(given) or damped_signal(*given))
    found = in_orders(WEIGHT, HESSIAN, bits=4)
    assert len(computed) == 1
    assert len(found.orders) == 3


def test_a_channel_that_no_token_used_costs_nothing() -> None:
    hessian = HESSIAN.clone()
    hessian[5], hessian[:, 5] = 0, 0
    found = in_orders(WEIGHT, hessian, bits=4)
    assert all(bool(order.so_far.isfinite().all()) for order in found.orders.values())
    assert found.orders[LARGEST].places[-1] == 5


def test_the_layer_with_the_most_unequal_channels_is_found() -> None:
    assert most_uneven({"even": torch.eye(4), "uneven": torch.diag(torch.tensor([9.0, 1, 1, 1])), "dead": torch.zeros(4, 4)}) == "uneven"
