"""Grids searched and scales refitted by the error of the output."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.methods.awq import output_error
from qlab.methods.grid import GroupedIntegers, fit_grid, round_to_grid
from qlab.methods.grid_search import REFIT_ROWS, diagonal_blocks, refit_scales, search_grid
from qlab.methods.rtn import rtn


def layer(rows: int, columns: int, seed: int, tokens: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and H of inputs whose channels share a common part, as real activations do."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, columns, generator=generator) + 2 * torch.randn(tokens, 1, generator=generator)
    return torch.randn(rows, columns, generator=generator) * 0.05, inputs.T @ inputs


def row_errors(found: GroupedIntegers, weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    error = (found.dequantize() - weight).double()
    return ((error @ hessian.double()) * error).sum(-1)


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 9), groups=st.integers(1, 6), size=st.sampled_from([8, 32]),
    bits=st.integers(2, 5), symmetric=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_refitted_scales_are_never_worse_in_any_row(rows: int, groups: int, size: int, bits: int, symmetric: bool, seed: int) -> None:
    weight, hessian = layer(rows, groups * size, seed)
    before = rtn(weight, bits, size, symmetric)
    after = refit_scales(before, weight, hessian)
    assert torch.equal(after.codes, before.codes)
    assert torch.equal(after.zeros, before.zeros)
    assert (row_errors(after, weight, hessian) <= row_errors(before, weight, hessian) * (1 + 1e-4)).all()
    assert torch.equal(after.scales, after.scales.half().float())


def test_refitting_solves_the_normal_equations() -> None:
    weight, hessian = layer(5, 96, 0)
    before = rtn(weight, 4, 32)
    after = refit_scales(before, weight, hessian, damping=0.0)
    size = 32
    for row in range(5):
        parts = torch.zeros(96, 3, dtype=torch.float64)
        for group in range(3):
            span = slice(group * size, (group + 1) * size)
            parts[span, group] = before.codes[row, span].double() - before.zeros[row, group]
        wanted = torch.linalg.solve(parts.T @ hessian.double() @ parts, parts.T @ hessian.double() @ weight[row].double())
        assert torch.allclose(after.scales[row].double(), wanted, rtol=2e-3)


def test_refitting_pays_where_groups_are_correlated_and_search_where_groups_have_outliers() -> None:
    weight, hessian = layer(REFIT_ROWS + 7, 256, 1)
    weight[:, ::50] *= 6
    covering = rtn(weight, 3, 64)
    blocks = diagonal_blocks(hessian, 64)
    scale, zero = search_grid(weight.view(-1, 4, 64), 3, False, blocks)
    codes = (weight.view(-1, 4, 64) / scale[..., None]).round().add(zero[..., None]).clamp(0, 7)
    searched = GroupedIntegers(codes.to(torch.uint8).view_as(weight), scale, zero.to(torch.int16), 3)
    errors = [output_error(found.dequantize(), weight, hessian) for found in (covering, searched, rtn(weight, 3, 64, hessian=hessian))]
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < 0.9 * errors[1]


def test_dead_groups_and_dead_channels_keep_their_scales_finite() -> None:
    weight, hessian = layer(4, 64, 2)
    weight[:, :32] = 0
    hessian[40:] = 0
    hessian[:, 40:] = 0
    found = rtn(weight, 4, 32, hessian=hessian)
    assert torch.isfinite(found.scales).all()
    assert (found.scales > 0).all()
    assert (found.dequantize()[:, :32] == 0).all()


@pytest.mark.parametrize("tail", [1, -1])
def test_the_further_side_of_a_symmetric_grid_serves_the_longer_tail_and_fitted_scales_keep_their_sign(tail: int) -> None:
    weight, hessian = layer(64, 128, 3)
    weight.view(64, 4, 32)[..., 5] = 0.4 * tail  # alone in its group: −8 steps reach it, 7 do not
    found = rtn(weight, 4, 32, True, hessian)
    assert (found.scales.sign() == -tail).float().mean() > 0.9
    assert (found.codes.view(64, 4, 32)[..., 5] == 0).float().mean() > 0.9
    assert (found.zeros == 8).all()
    assert torch.equal(found.scales, found.scales.half().float())
    mirrored = rtn(-weight, 4, 32, True, hessian)
    errors = [output_error(one.dequantize(), of, hessian) for one, of in ((mirrored, -weight), (found, weight))]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)
    covering = output_error(rtn(weight, 4, 32, True).dequantize(), weight, hessian)
    assert output_error(found.dequantize(), weight, hessian) < 0.85 * covering


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("blocks", [True, False])
def test_a_searched_grid_is_never_worse_than_the_covering_one(bits: int, symmetric: bool, blocks: bool) -> None:
    generator = torch.Generator().manual_seed(bits)
    inputs = torch.randn(200, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    groups = torch.randn(8, 2, 32, generator=generator).pow(3)
    metric = diagonal_blocks(inputs.T @ inputs, 32) if blocks else inputs.square().sum(0).view(2, 32)
    whole = metric if blocks else torch.diag_embed(metric)

    def error(grid: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        scale, zero = grid
        off = (round_to_grid(groups, scale, zero, bits) - zero[..., None]) * scale[..., None] - groups
        return torch.einsum("rgi,gij,rgj->rg", off.double(), whole.double(), off.double())

    found, cover = error(search_grid(groups, bits, symmetric, metric)), error(fit_grid(groups, bits, symmetric))
    assert blocks or (found <= cover * 1.02).all()  # in a metric that is no diagonal, rounding to the nearest is not the best
    assert found.sum() < cover.sum()
