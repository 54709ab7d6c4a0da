"""Triton's kernels against the plain functions that define them, compiled on a GPU; or, with TRITON_INTERPRET=1, by its interpreter.

Elsewhere they are skipped; test_kernels_chosen.py runs them by the interpreter on every machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from qlab.methods import kernels
from qlab.methods.gptq import gptq, inverse_factor
from qlab.methods.grid import GroupedIntegers, fit_grid
from qlab.methods.grid_search import diagonal_blocks, refit_scales, search_grid
from qlab.methods.hessian import damp
from qlab.methods.kquants.blocks import encode
from qlab.methods.rtn import rtn
from qlab.methods.settle import descend, settle, settle_blocks

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda", 0) if torch.cuda.is_available() else None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it when it is imported
TIES = 0.01  # of the codes: half-way in one order of summation, and not in the other; a single one moves others after it
WALKS = [  # order of columns, group size, whether symmetric, whether searched
    ("given", 128, True, False),
    ("group", 24, False, True),
    ("static", 36, True, True),
    ("scattered", 36, False, True),
    ("group", -1, True, True),
    ("given", 3, False, False),
]
Both = Callable[[Callable[[], Any]], tuple[Any, Any]]


@pytest.fixture
def device() -> torch.device:
    """Where kernels are tried: a GPU, or in the interpreter the CPU."""
    if INTERPRETED:
        return torch.device("cpu")
    if GPU is None or not kernels.run_on(GPU):
        pytest.skip("kernels are compiled for an NVIDIA GPU, and there is none here")
    return GPU


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> Both:
    """What a computation gives by the plain functions, and by the kernels."""

    def by_both(work: Callable[[], Any]) -> tuple[Any, Any]:
        results = []
        monkeypatch.setattr(kernels, "compiled", lambda: False)  # by the interpreter both compute on the CPU, whose own kernels stand aside
        for chosen in (False, True):
            monkeypatch.setattr(kernels, "run_on", lambda device, chosen=chosen: chosen)
            results.append(work())
        return results[0], results[1]

    return by_both


def problem(columns: int, device: torch.device, rows: int = 20) -> tuple[Tensor, Tensor]:
    """A weight whose rows are no whole number of tiles, and XᵀX of correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4 * columns, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return (0.02 * torch.randn(rows, columns, generator=generator)).to(device), (x.T @ x).to(device)


def differing(first: Tensor, second: Tensor) -> float:
    assert first.shape == second.shape
    return float((first != second).float().mean())


def cost(layer: GroupedIntegers, weight: Tensor, hessian: Tensor) -> float:
    error = (layer.dequantize() - weight).double()
    return float(((error @ hessian.double()) * error).sum())


@pytest.mark.parametrize(("order", "group_size", "symmetric", "search"), WALKS)
def test_gptq(both: Both, device: torch.device, order: str, group_size: int, symmetric: bool, search: bool) -> None:
    weight, hessian = problem(256 if group_size == 128 else 72, device)
    hessian[5], hessian[:, 5] = 0, 0  # a channel that no token used
    plain, ours = both(lambda: gptq(weight, hessian, 4, group_size, symmetric, order, search))
    assert differing(plain.codes, ours.codes) < TIES
    assert differing(plain.zeros, ours.zeros) < TIES
    assert torch.allclose(plain.scales, ours.scales, rtol=0.1)
    assert cost(ours, weight, hessian) < 1.01 * cost(plain, weight, hessian)
    assert cost(ours, weight, hessian) < 0.7 * cost(rtn(weight, 4, group_size, symmetric), weight, hessian)


def test_the_factor_is_inverted_by_halves(both: Both, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "TRIANGLE", 20)
    _, hessian = problem(99, device)
    (plain, _), (ours, note) = both(lambda: inverse_factor(hessian, torch.arange(99, device=device), 0.01))
    assert note == ""
    assert not plain.equal(ours)
    assert torch.allclose(plain, ours, rtol=1e-3, atol=1e-5 * float(plain.abs().max()))


def test_gptq_without_compensation(both: Both, device: torch.device) -> None:
    weight, hessian = problem(96, device)
    plain, ours = both(lambda: gptq(weight, hessian, 3, 32, compensate=False))
    assert plain.codes.equal(ours.codes)
    assert plain.scales.equal(ours.scales)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize(("bits", "symmetric"), [(2, False), (3, True), (4, False), (8, True)])
def test_the_search_for_grids(both: Both, device: torch.device, bits: int, symmetric: bool, blocks: bool) -> None:
    weight, hessian = problem(96, device)
    weight[2, :48] = 0  # a group of zeros
    metric = diagonal_blocks(hessian, 48) if blocks else hessian.diagonal().view(-1, 48)
    (scale, zero), (our_scale, our_zero) = both(lambda: search_grid(weight.view(len(weight), -1, 48), bits, symmetric, metric))
    assert differing(scale, fit_grid(weight.view(len(weight), -1, 48), bits, symmetric)[0]) > 0.5
    assert differing(scale, our_scale) < 0.03  # two of 70: where two ranges leave the same error
    assert differing(zero, our_zero) < 0.03


@pytest.mark.parametrize("group_size", [32, 48, 192])
@pytest.mark.parametrize("known", [False, True])
def test_the_scales(both: Both, device: torch.device, group_size: int, known: bool) -> None:
    weight, hessian = problem(192, device)
    layer, damped = rtn(weight, 4, group_size), damp(hessian.clone())
    away = (weight - layer.dequantize()) @ damped / damped.diagonal()
    bottoms = layer.dequantize() + away if known else None
    plain = refit_scales(layer, weight, damped)
    _, ours = both(lambda: refit_scales(layer, weight, damped, bottoms))
    assert differing(layer.scales, plain.scales) > 0.5
    assert differing(plain.scales, ours.scales) < 0.05
    assert torch.allclose(plain.scales, ours.scales, rtol=2e-3)  # a place of FP16


def test_settling(both: Both, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    from qlab.methods.kernels.gpu import settle_columns

    monkeypatch.setattr(settle_columns, "WIDEST", 32)  # three panels, of two blocks each but the last
    monkeypatch.setattr(settle_columns, "PANEL", 64)
    weight, hessian = problem(144, device, 35)
    damped, layer = damp(hessian.clone()), rtn(weight, 4, 48)
    (plain, bottoms), (ours, our_bottoms) = both(lambda: descend(layer.codes, layer.points, weight, damped, 2))
    assert differing(layer.codes, plain) > 0.1
    assert differing(plain, ours) < TIES
    assert float((bottoms - our_bottoms).abs().mean()) < 1e-5


def test_settling_gains_as_much(both: Both, device: torch.device) -> None:
    weight, hessian = problem(96, device)
    damped, layer = damp(hessian.clone()), rtn(weight, 3, 32)
    (plain, _), (ours, _) = both(lambda: settle(layer, weight, damped))
    assert cost(plain, weight, damped) < 0.8 * cost(layer, weight, damped)
    assert cost(ours, weight, damped) < 1.005 * cost(plain, weight, damped)


@pytest.mark.parametrize("kind", ["Q4_K", "Q3_K"])
def test_settling_blocks_of_llama_cpp(both: Both, device: torch.device, kind: str) -> None:
    weight, hessian = problem(256, device)
    weight[3, 64:96] = 0  # a sub-block of zeros has a scale of zero
    blocks = encode(weight, kind)
    plain, ours = both(lambda: settle_blocks(blocks, weight, damp(hessian.clone()), rounds=1))
    assert differing(blocks.codes, plain.codes) > 0.05
    assert differing(plain.codes, ours.codes) < TIES
