"""GPTQ against its definition: the optimal correction, column by column, by dense linear algebra."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

from qlab.methods import gptq as module
from qlab.methods.awq import output_error
from qlab.methods.gptq import gptq, inverse_factor
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
    for order in ("given", "static", "group", "scattered"):
        for search in (False, True):
            quantized = gptq(weight, hessian, 4, order=order, search=search)
            assert output_error(quantized.dequantize(), weight, hessian) < 0.7 * plain, (order, search)
            assert (quantized.group_of is not None) == (order == "scattered")
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


def test_a_hessian_of_no_use_is_rounded_to_nearest_and_said_aloud(layer: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, hessian = layer
    raised = gptq(weight, hessian - 0.05 * hessian.diagonal().mean() * torch.eye(256), 4)
    assert "damping raised" in raised.note
    given_up = gptq(weight, -hessian, 4)
    assert "RTN instead of GPTQ" in given_up.note
    assert torch.equal(given_up.codes, rtn(weight, 4).codes)


def test_layers_of_one_input_may_be_quantized_as_one_matrix(layer: tuple[torch.Tensor, torch.Tensor]) -> None:
    weight, hessian = layer
    whole = gptq(weight, hessian, 4, order="group", search=True).rows([12, 20])
    apart = [gptq(part, hessian, 4, order="group", search=True) for part in weight.split([12, 20])]
    assert all((a.codes == b.codes).float().mean() > 0.99 for a, b in zip(whole, apart))


@pytest.mark.parametrize("tokens", [400, 20])  # 20: singular but for its damping
def test_the_factor_is_that_of_the_inverse(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    inputs = torch.randn(tokens, 48, generator=generator)
    inputs[:, 5] *= 100
    hessian, places = inputs.T @ inputs, torch.randperm(48, generator=generator)
    factor, note = inverse_factor(hessian, places, 0.01)
    damped = hessian.double()[places][:, places]
    damped += 0.01 * damped.diagonal().mean() * torch.eye(48)
    expected = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    assert note == ""
    assert factor is not None
    assert torch.allclose(factor.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_no_matrix_that_is_done_with_is_held_while_h_is_factored(monkeypatch: pytest.MonkeyPatch) -> None:
    given, contiguous = list[Any](), torch.Tensor.contiguous

    def in_place(lower: torch.Tensor) -> torch.Tensor:  # as where kernels run
        given.append(weakref.ref(lower))
        return lower.copy_(torch.linalg.inv(lower))

    def copied(found: torch.Tensor) -> torch.Tensor:
        assert given[0]() is None, "the matrix before"
        return contiguous(found)

    expected, _ = inverse_factor(torch.eye(8) + 1, torch.arange(8), 0.01)
    monkeypatch.setattr(module, "inverted", in_place)
    monkeypatch.setattr(torch.Tensor, "contiguous", copied)
    found, _ = inverse_factor(torch.eye(8) + 1, torch.arange(8), 0.01)
    assert len(given) == 1
    assert found is not None
    torch.testing.assert_close(found, expected)
