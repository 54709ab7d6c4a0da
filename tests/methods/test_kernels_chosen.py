"""Where kernels run: when they are chosen, on which GPU, and on any machine by Triton's interpreter, in NumPy."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch

from qlab import ROOT
from qlab.methods import kernels
from qlab.methods.gptq import gptq
from tests.methods.test_kernels import problem


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """PyTorch believes in a GPU that kernels would run on; what was found out before and after is forgotten."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 0))
    kernels.obstacle.cache_clear()
    yield monkeypatch
    kernels.obstacle.cache_clear()


def test_the_kernels_do_as_the_plain_functions() -> None:
    """In a process of its own, since Triton decides when it is imported."""
    pytest.importorskip("triton", reason="Triton, which PyTorch brings along on Linux only, is not installed")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--noconftest", str(ROOT / "tests/methods/test_kernels.py")]
    ran = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "skipped" not in ran.stdout, ran.stdout


def test_a_cpu_never_computes_with_kernels_of_triton(card: pytest.MonkeyPatch) -> None:
    assert not kernels.run_on(torch.device("cpu"))


def test_without_numba_the_plain_functions_go_on_and_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qlab.methods.kernels.cpu.trial", None)  # as where an import fails
    kernels.compiled.cache_clear()
    try:
        with pytest.warns(UserWarning, match="without kernels.*numba does not compile"):
            assert kernels.found("search_grid", torch.device("cpu")) is None
        with warnings.catch_warnings(action="error"):
            assert kernels.found("search_grid", torch.device("cpu")) is None
    finally:
        kernels.compiled.cache_clear()


def test_kernels_run_where_they_can_be_compiled(card: pytest.MonkeyPatch) -> None:
    trial = pytest.importorskip(
        "qlab.methods.kernels.gpu.trial", reason="Triton, which PyTorch brings along on Linux only, is not installed"
    )
    tried: list[torch.device] = []
    card.setattr(trial, "compile_and_run", tried.append)
    with warnings.catch_warnings(action="error"):
        assert kernels.run_on(torch.device("cuda", 1))
        assert kernels.run_on(torch.device("cuda", 1))
    assert tried == [torch.device("cuda", 1)]


def test_without_a_compiler_the_plain_functions_go_on_and_it_is_said_once(card: pytest.MonkeyPatch) -> None:
    trial = pytest.importorskip(
        "qlab.methods.kernels.gpu.trial", reason="Triton, which PyTorch brings along on Linux only, is not installed"
    )

    def fail(device: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler.")

    card.setattr(trial, "compile_and_run", fail)
    with pytest.warns(UserWarning, match=r"without kernels.*RuntimeError: Failed to find C compiler"):
        assert not kernels.run_on(torch.device("cuda"))
    with warnings.catch_warnings(action="error"):
        assert not kernels.run_on(torch.device("cuda"))


@pytest.mark.parametrize(
    ("where", "name", "value", "reason"),
    [
        (torch.version, "cuda", None, "NVIDIA"),
        (torch.cuda, "get_device_capability", lambda index: (7, 5), "Ampere"),
        (kernels, "find_spec", lambda name: None, "Triton is not installed"),
    ],
)
def test_what_stands_in_the_way_is_named(card: pytest.MonkeyPatch, where: object, name: str, value: object, reason: str) -> None:
    card.setattr(where, name, value)
    with pytest.warns(UserWarning, match=reason):
        assert reason in kernels.obstacle(0)


@pytest.mark.gpu
def test_kernels_run_on_the_gpu_that_holds_the_matrices() -> None:
    if torch.cuda.device_count() < 2 or not kernels.run_on(torch.device("cuda", 1)):
        pytest.skip("there are no two GPUs here that kernels run on")
    weight, hessian = problem(96, torch.device("cuda", 1))
    layers = [gptq(weight.to(name), hessian.to(name), 4, 24, True, "group", True) for name in ("cuda:0", "cuda:1")]
    assert [layer.codes.device.index for layer in layers] == [0, 1]
    assert layers[0].codes.cpu().equal(layers[1].codes.cpu())
