"""FP8 by hand and by search, and how much less channel scales help it than they help INT8."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qlab.methods.activations import best_smoothing, rounded_by_token
from qlab.methods.fp8 import LARGEST, fp8, rounded_floats

NUMBERS = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
FINITE = NUMBERS[NUMBERS.isfinite()]


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


@pytest.mark.parametrize("block", [None, (128, 128), (8, 16)])
@pytest.mark.parametrize("shape", [(256, 128), (40, 200)])
def test_every_weight_becomes_the_nearest_number(shape: tuple[int, int], block: tuple[int, int] | None) -> None:
    weight = matrix(*shape)
    found = fp8(weight, block)
    rows, columns = block or (1, shape[1])
    assert found.scales.shape == (-(-shape[0] // rows), -(-shape[1] // columns))
    for row, column in ((0, 0), (shape[0] - 1, shape[1] - 1), (5, 17), (shape[0] // 2, 3)):
        down, across = row // rows, column // columns
        shared = weight[down * rows : (down + 1) * rows, across * columns : (across + 1) * columns]
        assert float(found.scales[down, across]) == pytest.approx(float(shared.abs().max()) / 448, rel=1e-6)
        nearest = (FINITE * found.scales[down, across] - weight[row, column]).abs().min()
        assert abs(found.dequantize()[row, column] - weight[row, column]) <= nearest * (1 + 1e-5)
    assert float(found.codes.float().abs().max()) == LARGEST


def test_rows_of_zeros_stay_zeros() -> None:
    weight = matrix(4, 64)
    weight[2] = 0
    assert torch.equal(fp8(weight).dequantize()[2], torch.zeros(64))
    assert torch.equal(rounded_floats(torch.zeros(3, 64)), torch.zeros(3, 64))


def test_activations_have_a_scale_a_token_or_a_group_of_it() -> None:
    inputs = torch.cat([matrix(6, 128), 1000 * matrix(6, 128, 1)], 1)
    assert torch.equal(rounded_floats(inputs), fp8(inputs).dequantize())
    assert torch.equal(rounded_floats(inputs, 128), fp8(inputs, (1, 128)).dequantize())
    assert torch.equal(rounded_floats(inputs, 1 << 26), rounded_floats(inputs))
    assert torch.equal(rounded_floats(inputs[:, :200], 128), fp8(inputs[:, :200], (1, 128)).dequantize())
    assert torch.equal(rounded_floats(inputs.view(2, 3, 256), 128).view(6, 256), rounded_floats(inputs, 128))
    assert rounded_floats(inputs.bfloat16()).dtype == torch.bfloat16


def error(rounded: Tensor, exact: Tensor) -> float:
    return float((rounded - exact).square().mean())


def test_smoothing_wins_little_where_integers_win_much() -> None:
    """Of channels of unequal size: a float is rounded by a share of itself, whatever the scale."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 256, generator=generator) * torch.randn(256, generator=generator).exp()
    weight = torch.randn(96, 256, generator=generator) * 0.02
    scale, exact = best_smoothing(weight, inputs.square().mean(0)), inputs @ weight.T

    def integers(by: Tensor) -> float:
        scaled = weight * by
        step = scaled.abs().amax(1, keepdim=True) / 127
        return error(rounded_by_token(inputs / by) @ ((scaled / step).round() * step).T, exact)

    def floats(by: Tensor) -> float:
        return error(rounded_floats(inputs / by) @ fp8(weight * by).dequantize().T, exact)

    ones = torch.ones_like(scale)
    assert integers(scale) < 0.4 * integers(ones)
    assert 0.8 < floats(scale) / floats(ones) < 1
    assert floats(scale) > 5 * integers(scale)
