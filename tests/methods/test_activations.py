"""Activations in 8 bits, and the scale that they and the weights lose least by."""

from __future__ import annotations

import torch
from torch import Tensor

from qlab.methods.activations import best_smoothing, predicted_error, rounded_by_token, smoothing_scale


def outliers(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight [48, 64], and activations [256, 64] two channels of which are a hundred times as large."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(256, 64, generator=generator)
    inputs[:, [5, 40]] *= 100
    return torch.randn(48, 64, generator=generator) * 0.02, inputs


def real_error(weight: Tensor, inputs: Tensor, scale: Tensor) -> float:
    """The mean squared error of the layer's output where both are rounded to 8 bits."""
    scaled = weight * scale
    step = scaled.abs().amax(1, keepdim=True) / 127
    rounded = (scaled / step).round() * step
    return float((rounded_by_token(inputs / scale) @ rounded.T - inputs @ weight.T).square().mean())


def test_each_token_has_a_scale_of_its_own() -> None:
    inputs = torch.tensor([[127.0, 1.0, -0.4], [1.27, 0.01, -0.004], [0.0, 0.0, 0.0]])
    assert torch.allclose(rounded_by_token(inputs), torch.tensor([[127.0, 1.0, 0.0], [1.27, 0.01, 0.0], [0.0, 0.0, 0.0]]))
    assert rounded_by_token(inputs.half()).dtype == torch.float16
    assert torch.equal(rounded_by_token(inputs[:1] * 3), rounded_by_token(inputs[:1]) * 3)


def test_the_search_finds_what_the_layer_loses_least_by() -> None:
    weight, inputs = outliers()
    mean_square = inputs.square().mean(0)
    ones, best = torch.ones(64), best_smoothing(weight, mean_square)
    tried = [ones, *(smoothing_scale(weight, mean_square, step / 20) for step in range(21))]
    errors = [real_error(weight, inputs, scale) for scale in tried]
    assert real_error(weight, inputs, best) < 1.2 * min(errors)
    assert real_error(weight, inputs, best) < 0.1 * real_error(weight, inputs, ones)


def test_without_outliers_little_is_to_be_won() -> None:
    generator = torch.Generator().manual_seed(3)
    weight, inputs = torch.randn(48, 64, generator=generator), torch.randn(256, 64, generator=generator)
    best = best_smoothing(weight, inputs.square().mean(0))
    assert 0.5 < real_error(weight, inputs, best) / real_error(weight, inputs, torch.ones(64)) < 1.05


def test_a_common_factor_changes_nothing() -> None:
    weight, inputs = outliers(1)
    mean_square = inputs.square().mean(0)
    scale = smoothing_scale(weight, mean_square, 0.5)
    assert abs(predicted_error(weight, mean_square, 7 * scale) / predicted_error(weight, mean_square, scale) - 1) < 1e-4


def test_dead_channels_do_not_break_it() -> None:
    weight, inputs = outliers(2)
    inputs[:, 7], weight[:, 9] = 0, 0
    assert torch.isfinite(best_smoothing(weight, inputs.square().mean(0))).all()
