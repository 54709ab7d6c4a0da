"""GPTQ against its definition: the optimal correction, column by column, by dense linear algebra."""

from __future__ import annotations

import pytest
import torch

from qlab.methods.awq import output_error
from qlab.methods.gptq import gptq
from qlab.methods.rtn import rtn


@pytest.fixture
def layer() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(256, 256, generator=generator) * 0.3 + torch.eye(256)
    inputs = torch.randn(2048, 256, generator=generator) @ mixing
    return torch.randn(32, 256, generator=generator), inputs.T @ inputs


def test_compensation_beats_rounding_and_without_it_is_rounding(layer: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, hessian = layer
    control = gptq(weight, hessian, 4, compensate=False)
    assert torch.equal(control.codes, rtn(weight, 4, 128).codes)
    plain = output_error(control.dequantize(), weight, hessian)
    for options in ({}, {"act_order": True}):
        assert output_error(gptq(weight, hessian, 4, **options).dequantize(), weight, hessian) < 0.7 * plain
    symmetric = output_error(rtn(weight, 4, 128, symmetric=True).dequantize(), weight, hessian)
    assert output_error(gptq(weight, hessian, 4, symmetric=True).dequantize(), weight, hessian) < 0.7 * symmetric


def test_equals_optimal_brain_quantization_done_densely(layer: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, hessian = layer
    weight, hessian = weight[:4, :128].double(), hessian[:128, :128].double()
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(128)
    ours = gptq(weight, hessian, 4, group_size=128)
    work, inverse = weight.clone(), torch.linalg.inv(damped)
    scale, zero = ours.scales.double()[:, 0], ours.zeros.double()[:, 0]
    codes = torch.empty_like(work)
    for j in range(128):  # OBQ: δ = −(w_j − quant(w_j)) / [H⁻¹]_jj · [H⁻¹]_j:, then column j leaves the problem
        codes[:, j] = (torch.round(work[:, j] / scale) + zero).clamp(0, 15)
        error = (work[:, j] - (codes[:, j] - zero) * scale) / inverse[j, j]
        work -= error[:, None] * inverse[j]
        inverse -= inverse[:, j, None] * inverse[j] / inverse[j, j]
    assert (codes.to(torch.uint8) == ours.codes).float().mean() > 0.99  # ties fall either way in FP32


def test_dead_channels_do_no_harm(layer: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, hessian = layer
    hessian = hessian.clone()
    hessian[3], hessian[:, 3] = 0, 0
    assert gptq(weight, hessian, 4).dequantize().isfinite().all()
