"""AWQ's loss and search."""

from __future__ import annotations

import pytest
import torch

from qlab.methods.awq import best_scale, channel_scale, output_error, protect_channels, scaled_rtn, sweep_exponents
from qlab.methods.rtn import rtn


@pytest.fixture
def layer() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 128, generator=generator)
    inputs[:, 7] *= 30  # one channel as large models have them
    return torch.randn(64, 128, generator=generator), inputs


def test_the_loss_from_the_hessian_is_the_loss_on_the_tokens(layer: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, inputs = layer
    approximation = rtn(weight, 3, 128).dequantize()
    direct = ((inputs @ (approximation - weight).T).square().sum() / (inputs @ weight.T).square().sum()).item()
    assert output_error(approximation, weight, inputs.T @ inputs) == pytest.approx(direct, rel=1e-4)


def test_an_outlier_channel_moves_the_best_exponent_off_zero(layer: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, inputs = layer
    points = sweep_exponents(weight, inputs.abs().mean(0), inputs.T @ inputs, 3)
    best = min(points, key=lambda point: point[1])
    assert points[0][1] == pytest.approx(output_error(rtn(weight, 3).dequantize(), weight, inputs.T @ inputs))
    assert best[0] > 0.1
    assert best[1] < 0.6 * points[0][1]


def test_protecting_the_outlier_helps_and_another_channel_does_not(layer: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, inputs = layer
    hessian = inputs.T @ inputs
    plain, outlier, other = (
        output_error(protect_channels(weight, torch.tensor(c, dtype=torch.int64), 3), weight, hessian) for c in ([], [7], [8])
    )
    assert outlier < 0.4 * plain
    assert other > 0.95 * plain


def test_a_scale_of_one_is_plain_rounding(layer: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, _ = layer
    assert torch.equal(scaled_rtn(weight, torch.ones(128), 4), rtn(weight, 4).dequantize())


def test_scales_survive_dead_channels() -> None:
    scale = channel_scale(torch.tensor([0.0, 1.0, 2.0]), 0.5)
    assert scale.isfinite().all()
    assert (scale > 0).all()


@pytest.mark.parametrize(("outliers", "bits"), [(0, 3), (1, 3), (16, 3), (1, 4), (4, 4), (16, 4)])
def test_the_scale_found_is_that_of_the_whole_sweep(layer: tuple[torch.Tensor, torch.Tensor], outliers: int, bits: int) -> None:
    weight, inputs = layer
    inputs = inputs.clone()
    inputs[:, 7] /= 30
    inputs[:, :outliers] *= 10
    magnitude, mean_square = inputs.abs().mean(0), inputs.square().mean(0)

    def error(scale: torch.Tensor) -> float:  # in the layer's own weights, as the paper has it
        return float(((scaled_rtn(weight, scale, bits) - weight).square() * mean_square).sum())

    sweep = [error(channel_scale(magnitude, step / 20)) for step in range(21)]
    assert error(best_scale(weight, magnitude, mean_square, bits, 128)) == pytest.approx(min(sweep), rel=1e-5)
    assert (min(sweep) < 0.9 * sweep[0]) == (outliers > 0)
    assert sweep.index(min(sweep)) % 2 or (outliers, bits) != (4, 4)  # there only the second pass finds it
