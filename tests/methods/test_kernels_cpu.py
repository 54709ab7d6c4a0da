"""Kernels that numba compiles against the plain functions that define them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qlab import ROOT
from qlab.methods import kernels
from qlab.methods.gptq import gptq
from qlab.methods.grid import storable
from qlab.methods.grid_search import diagonal_blocks, first_grid, search_grid
from qlab.methods.hessian import damp
from qlab.methods.kernels.cpu import compiling
from qlab.methods.kernels.cpu.grid_trials import _stored
from qlab.methods.kquants.blocks import encode
from qlab.methods.rtn import rtn
from qlab.methods.settle import descend, settle, settle_blocks
from tests.methods.test_kernels import TIES, WALKS, Both, cost, differing, problem

CPU = torch.device("cpu")
KERNEL = "from qlab.methods.kernels.cpu.compiling import compiled\n@compiled\ndef add(a, b):\n    a[0] += b\n"


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Both:
    """What a computation gives by the plain functions, and by the kernels."""

    def by_both(work: Callable[[], Any]) -> tuple[Any, Any]:
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "compiled", lambda: False)
            plain = work()
        return plain, work()

    return by_both


def test_a_cpu_has_them() -> None:
    for name in ("round_columns", "settle_columns", "search_grid", "grid_trials"):
        assert kernels.found(name, CPU), name
    assert kernels.found("refit", CPU) is None


@pytest.mark.parametrize(("order", "group_size", "symmetric", "search"), WALKS)
def test_gptq(both: Both, order: str, group_size: int, symmetric: bool, search: bool) -> None:
    weight, hessian = problem(256 if group_size == 128 else 72, CPU, 300)
    hessian[5], hessian[:, 5] = 0, 0  # a channel that no token used
    plain, ours = both(lambda: gptq(weight, hessian, 4, group_size, symmetric, order, search))
    assert differing(plain.codes, ours.codes) < TIES
    assert differing(plain.zeros, ours.zeros) < TIES
    assert differing(plain.scales, ours.scales) < TIES
    assert cost(ours, weight, hessian) == pytest.approx(cost(plain, weight, hessian), rel=2e-3)
    assert cost(ours, weight, hessian) < 0.7 * cost(rtn(weight, 4, group_size, symmetric), weight, hessian)


def test_gptq_without_compensation(both: Both) -> None:
    weight, hessian = problem(96, CPU)
    plain, ours = both(lambda: gptq(weight, hessian, 3, 32, compensate=False))
    assert plain.codes.equal(ours.codes)
    assert plain.scales.equal(ours.scales)


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize(("bits", "symmetric"), [(2, False), (3, True), (4, False), (8, True)])
def test_the_search_for_grids(both: Both, bits: int, symmetric: bool, blocks: bool) -> None:
    weight, hessian = problem(96, CPU, 300)
    weight[2, :48] = 0  # a group of zeros
    metric = diagonal_blocks(hessian, 48) if blocks else hessian.diagonal().view(-1, 48)
    groups = weight.view(len(weight), -1, 48)
    (scale, zero), (our_scale, our_zero) = both(lambda: search_grid(groups, bits, symmetric, metric))
    assert differing(scale, first_grid(groups, bits, symmetric)[0]) > 0.5
    assert differing(scale, our_scale) < TIES
    assert differing(zero, our_zero) < TIES


def test_settling(both: Both) -> None:
    weight, hessian = problem(144, CPU, 300)
    damped, layer = damp(hessian.clone()), rtn(weight, 4, 48)
    (plain, bottoms), (ours, our_bottoms) = both(lambda: descend(layer.codes, layer.points, weight, damped, 2))
    assert differing(layer.codes, plain) > 0.1
    assert differing(plain, ours) < TIES
    assert float((bottoms - our_bottoms).abs().mean()) < 1e-5
    (plain, _), (ours, _) = both(lambda: settle(layer, weight, damped))
    assert cost(ours, weight, damped) == pytest.approx(cost(plain, weight, damped), rel=2e-3)


@pytest.mark.parametrize("kind", ["Q4_K", "Q3_K"])
def test_settling_blocks_of_llama_cpp(both: Both, kind: str) -> None:
    weight, hessian = problem(256, CPU)
    weight[3, 64:96] = 0  # a sub-block of zeros has a scale of zero
    blocks = encode(weight, kind)
    plain, ours = both(lambda: settle_blocks(blocks, weight, damp(hessian.clone()), rounds=1))
    assert differing(blocks.codes, plain.codes) > 0.05
    assert differing(plain.codes, ours.codes) < TIES


@settings(deadline=None, max_examples=300)
@given(st.floats(-1e5, 1e5, width=32))
def test_scales_are_stored_as_fp16_holds_them(value: float) -> None:
    assert float(_stored(np.float32(value))) == float(storable(torch.tensor([value]))[0])


def test_single_columns_store_scales_likewise() -> None:
    """Through the search itself: a group of one weight, and of its opposite, has a scale that is stored."""
    sizes = torch.cat([2.0 ** torch.arange(-26.0, 15), torch.rand(500).mul(30).sub(25).exp2()])
    groups = torch.stack([sizes, -sizes], -1)[:, None]
    scale, _ = search_grid(groups, 4, True, torch.ones(1, 2))
    assert scale.equal(storable(scale))


def test_the_same_on_any_number_of_threads() -> None:
    weight, hessian = problem(72, CPU, 1000)
    groups, metric = weight.view(len(weight), -1, 24), hessian.diagonal().view(-1, 24).contiguous()
    threads, found = torch.get_num_threads(), []
    try:
        for number in (2, 6):  # of which half are used
            torch.set_num_threads(number)
            found.append(search_grid(groups, 4, True, metric))
    finally:
        torch.set_num_threads(threads)
    assert compiling._pool(3)._threads  # there were some
    assert all(map(torch.equal, *found))


def test_a_group_that_no_grid_serves_keeps_the_first(both: Both) -> None:
    groups = problem(64, CPU, 8)[0].view(8, 2, 32).clone()
    groups[0, 0, 3], groups[1, 1, 5], groups[2, 0, 0] = torch.nan, 1e20, 1e6
    plain, ours = both(lambda: search_grid(groups, 4, False, torch.ones(2, 32)))
    for expected, found in zip(plain, ours):
        assert torch.allclose(expected, found, rtol=0, atol=0, equal_nan=True)


def test_parameters_and_other_precisions_are_taken(both: Both) -> None:
    weight, hessian = problem(64, CPU)
    groups, blocks = nn.Parameter(weight).view(len(weight), 2, 32), diagonal_blocks(hessian, 32)
    for metric in (hessian.diagonal().view(2, 32), blocks):
        assert torch.equal(search_grid(groups, 4, False, metric)[0], search_grid(groups.detach(), 4, False, metric)[0])
    plain, ours = both(lambda: search_grid(groups.double(), 4, False, blocks.double())[0])
    assert plain.equal(ours)


@pytest.mark.parametrize("size", [3, 127])
def test_groups_that_leave_narrow_blocks_are_rounded_plainly(both: Both, size: int) -> None:
    weight, hessian = problem(3 * size, CPU)
    plain, ours = both(lambda: gptq(weight, hessian, 4, size))
    assert plain.codes.equal(ours.codes)


def test_where_machine_code_cannot_be_kept_it_is_made_each_time(tmp_path: Path) -> None:
    """An installation that is read-only, of a user without a home."""
    room = tmp_path / "package"
    room.mkdir()
    (room / "kernel.py").write_text(KERNEL)
    code = "import numpy, numba.core.caching as c; c.CacheImpl._locator_classes = []; import kernel; a = numpy.zeros(1); kernel.add(a, 2.0)"
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}; print(a[0])"], env=os.environ | {"PYTHONPATH": f"{room}:{ROOT}"}, capture_output=True, text=True
    )
    assert ran.stdout == "2.0\n", ran.stderr


@pytest.mark.parametrize("fault", ["a full disk", "a damaged file"])
def test_machine_code_that_is_not_kept_or_damaged_is_made_again(tmp_path: Path, fault: str) -> None:
    (tmp_path / "kernel.py").write_text(KERNEL)
    code = "import numpy, kernel; a = numpy.zeros(1); kernel.add(a, 2.0); print(a[0])"
    full = "import os, numba.core.caching as c\ndef f(*_):\n    raise OSError(28, 'No space left on device')\nc.os.replace = f\n"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    for turn in range(2):
        command = [sys.executable, "-c", (full if fault == "a full disk" else "") + code]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert ran.stdout == "2.0\n", ran.stderr
        kept = list((tmp_path / "__pycache__").glob("*.nb?"))
        if fault == "a damaged file":
            assert turn or kept
            for file in kept:
                file.write_bytes(b"")
