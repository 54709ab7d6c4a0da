"""The column by column picture is of the real GPTQ: its codes, its weights as they stood, and updates that lead from one to the next."""

from __future__ import annotations

import pytest
import torch

from qlab.methods.awq import output_error
from qlab.methods.gptq import gptq
from qlab.workbook.drawn.columns import Columns, column_by_column, small_matrix


@pytest.fixture
def walk() -> Columns:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(200, 16, generator=generator) + 1.5 * torch.randn(200, 1, generator=generator)
    return column_by_column(torch.randn(12, 16, generator=generator), inputs.T @ inputs, bits=3)


def test_codes_and_values_are_those_of_gptq(walk: Columns) -> None:
    found = gptq(walk.weight, walk.hessian, 3, group_size=-1)
    assert torch.equal(walk.codes, found.codes)
    assert torch.equal(walk.rounded, found.dequantize())


def test_each_column_stood_where_the_updates_of_those_before_it_led(walk: Columns) -> None:
    for column in range(1, walk.count):
        moved = walk.weight + sum(walk.updates(done) for done in range(column))
        torch.testing.assert_close(moved[:, column], walk.stood[:, column], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(walk.standing(column - 1)[:, column], walk.stood[:, column], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(walk.stood, walk.weight, atol=0.05)


def test_an_update_moves_only_what_comes(walk: Columns) -> None:
    assert not walk.updates(5)[:, :6].any()
    assert walk.updates(5)[:, 6:].any()
    assert not walk.updates(15).any()


def test_at_the_last_column_the_errors_are_those_of_the_two_methods(walk: Columns) -> None:
    compensating, plain = walk.output_errors[-1]
    assert compensating == pytest.approx(output_error(walk.rounded, walk.weight, walk.hessian))
    assert plain == pytest.approx(output_error(walk.plain, walk.weight, walk.hessian))
    assert compensating < plain


def test_an_update_is_the_least_squares_answer_to_what_was_rounded(walk: Columns) -> None:
    """The first column's error alone: no other change of the columns to come leaves less of it in the damped output."""
    damped = walk.hessian + 0.01 * walk.hessian.diagonal().mean() * torch.eye(16)
    error = walk.rounded[:, 0] - walk.weight[:, 0]
    best = -torch.outer(error, torch.linalg.solve(damped[1:, 1:], damped[1:, 0]))
    torch.testing.assert_close(walk.updates(0)[:, 1:], best, rtol=1e-3, atol=1e-4)


def test_the_piece_holds_the_channels_that_go_together() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(500, 40, generator=generator)
    together = [3, 8, 21, 22, 37]
    inputs[:, together] += 4 * torch.randn(500, 1, generator=generator)
    inputs[:, [1, 5, 14, 30]] += 3.9 * torch.randn(500, 1, generator=generator)  # others that go together, but not with these
    inputs[:, 11] = 0  # a channel that no token used
    weight = torch.randn(30, 40, generator=generator)
    part, hessian, chosen = small_matrix(weight, inputs.T @ inputs, rows=4, columns=6)
    assert chosen.tolist() == sorted(chosen.tolist())
    assert set(together) < set(chosen.tolist())
    assert not {1, 5, 11, 14, 30} & set(chosen.tolist())
    assert torch.equal(part, weight[:4, chosen])
    torch.testing.assert_close(hessian, inputs[:, chosen].T @ inputs[:, chosen])
