"""Kernels against the plain functions that define them: compiled on a GPU, or as Triton's interpreter runs them on any machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from qlab.methods import kernels
from qlab.methods.gptq import gptq
from qlab.methods.grid import GroupedIntegers
from qlab.methods.grid_search import refit_scales, search_grid
from qlab.methods.hessian import damp
from qlab.methods.kquants import encode
from qlab.methods.rtn import rtn
from qlab.methods.settle import descend, settle_blocks

GPU = torch.device("cuda", 0) if torch.cuda.is_available() else None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it when it is imported
TIES = 0.01  # of the codes: half-way in one order of summation, and not in the other; a single one moves others after it
T = TypeVar("T")


def test_the_kernels_do_as_the_plain_functions_by_the_interpreter() -> None:
    pytest.importorskip("triton", reason="Triton, whose interpreter runs the kernels without a GPU, is not here")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--noconftest", "-k", "kernel_of", __file__]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "skipped" not in ran.stdout


@pytest.fixture
def device() -> torch.device:
    """Where kernels are tried: a GPU, or in the interpreter the CPU."""
    if INTERPRETED:
        return torch.device("cpu")
    if GPU is None or not kernels.run_on(GPU):
        pytest.skip("kernels are compiled for an NVIDIA GPU, and there is none here")
    return GPU


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> Iterator[Callable[[Callable[[], T]], tuple[T, T]]]:
    """What a computation gives by the plain functions, and by the kernels."""

    def by_both(work: Callable[[], T]) -> tuple[T, T]:
        results = []
        for chosen in (False, True):
            monkeypatch.setattr(kernels, "run_on", lambda device, chosen=chosen: chosen)
            results.append(work())
        return results[0], results[1]

    yield by_both


def problem(columns: int, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A weight, and XᵀX of correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4 * columns, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return (0.02 * torch.randn(rows, columns, generator=generator)).to(device), (x.T @ x).to(device)


def differing(first: Tensor, second: Tensor) -> float:
    assert first.shape == second.shape
    return float((first != second).float().mean())


def cost(layer: GroupedIntegers, weight: Tensor, hessian: Tensor) -> float:
    error = (layer.dequantize() - weight).double()
    return float(((error @ hessian.double()) * error).sum())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("order", "group_size"), [("given", 128), ("group", 48), ("static", 64), ("scattered", 64), ("group", -1), ("given", 3)])
def test_kernel_of_gptq(both: Callable, device: torch.device, order: str, group_size: int, symmetric: bool) -> None:  # type: ignore[type-arg]
    weight, hessian = problem(192 if group_size not in (128,) else 256, 37, device)  # 37: no whole number of tiles
    hessian[5], hessian[:, 5] = 0, 0  # a channel that no token used
    search = group_size != 3
    plain, ours = both(lambda: gptq(weight, hessian, 4, group_size, symmetric, order, search))
    assert differing(plain.codes, ours.codes) < TIES
    assert differing(plain.zeros, ours.zeros) < TIES
    assert torch.allclose(plain.scales, ours.scales, rtol=0.1)
    assert cost(ours, weight, hessian) < 1.01 * cost(plain, weight, hessian)
    assert cost(ours, weight, hessian) < 0.7 * cost(rtn(weight, 4, group_size, symmetric), weight, hessian)


def test_kernel_of_gptq_without_compensation(both: Callable, device: torch.device) -> None:  # type: ignore[type-arg]
    weight, hessian = problem(128, 37, device)
    plain, ours = both(lambda: gptq(weight, hessian, 3, 32, compensate=False))
    assert plain.codes.equal(ours.codes)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_kernel_of_the_search_for_grids(both: Callable, device: torch.device, bits: int, symmetric: bool) -> None:  # type: ignore[type-arg]
    weight, hessian = problem(192, 37, device)
    weight[2, :48] = 0  # a group of zeros
    metric = hessian.diagonal().view(-1, 48)
    (scale, zero), (our_scale, our_zero) = both(lambda: search_grid(weight.view(37, -1, 48), bits, symmetric, metric))
    assert differing(scale, our_scale) < TIES
    assert zero.equal(our_zero)


@pytest.mark.parametrize("group_size", [32, 48, 192])
def test_kernel_of_the_scales(both: Callable, device: torch.device, group_size: int) -> None:  # type: ignore[type-arg]
    weight, hessian = problem(192, 70, device)
    layer = rtn(weight, 4, group_size)
    plain, ours = both(lambda: refit_scales(layer, weight, damp(hessian.clone())))
    assert differing(layer.scales, plain.scales) > 0.5
    assert differing(plain.scales, ours.scales) < 0.02
    assert torch.allclose(plain.scales, ours.scales, rtol=2e-3)  # a place of FP16


def test_kernel_of_settling(both: Callable, device: torch.device) -> None:  # type: ignore[type-arg]
    weight, hessian = problem(192, 37, device)
    damped, layer = damp(hessian.clone()), rtn(weight, 4, 48)
    (plain, bottoms), (ours, our_bottoms) = both(lambda: descend(layer.codes, layer.points, weight, damped, 2))
    assert differing(layer.codes, plain) > 0.1
    assert differing(plain, ours) < TIES
    assert float((bottoms - our_bottoms).abs().mean()) < 1e-5


@pytest.mark.parametrize("kind", ["Q4_K", "Q3_K", "Q5_0"])
def test_kernel_of_settling_blocks_of_llama_cpp(both: Callable, device: torch.device, kind: str) -> None:  # type: ignore[type-arg]
    weight, hessian = problem(256, 37, device)
    weight[3, 64:96] = 0  # a sub-block of zeros has a scale of zero
    blocks = encode(weight, kind)
    plain, ours = both(lambda: settle_blocks(blocks, weight, damp(hessian.clone())))
    assert differing(blocks.codes, plain.codes) > 0.05
    assert differing(plain.codes, ours.codes) < TIES
