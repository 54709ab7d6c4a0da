"""GPTQ's stages on a block's matrices, by the plain functions and by the kernels: seconds, equal codes, the error left, peak memory.

`python -m tests.bench.kernels`, on a machine with a GPU; with `--small` on matrices that any card holds. It needs PyTorch alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar
from unittest.mock import patch

import torch
from torch import Tensor

from qlab.methods import kernels
from qlab.methods.gptq import column_order, gptq, inverse_factor, one_pass
from qlab.methods.grid import GroupedIntegers
from qlab.methods.grid_search import refit_scales
from qlab.methods.hessian import damp, shrink
from qlab.methods.kquants import encode
from qlab.methods.settle import descend, settle, settle_blocks
from qlab.statistics import Statistics

GROUP, BITS = 128, 4
# Of a block of Llama-3.1-8B, [out, in] of what is quantized as one matrix.
BLOCK = {"query, key, value": (6144, 4096), "attention's output": (4096, 4096), "gate, up": (28672, 4096), "down": (4096, 14336)}
SMALL = {"small": (1024, 1024)}
TOKENS, BATCH = 128 * 512, 8 * 512
T = TypeVar("T")


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds until the GPU is done, and the result."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return time.perf_counter() - started, result


def compared(label: str, work: Callable[[], T]) -> tuple[T, T]:
    """Print the seconds of `work` by the plain functions and by the kernels, warm; return both results."""
    with patch.object(kernels, "run_on", lambda device: False):
        plain, expected = timed(work)
    work()  # compiles
    ours, found = timed(work)
    TOTALS[label.split(",")[0]] = [a + b for a, b in zip(TOTALS.get(label.split(",")[0], [0.0, 0.0]), (plain, ours))]
    print(f"  {label:42} {plain:8.3f} s plain {ours:8.3f} s kernels {plain / ours:6.1f}×", flush=True)
    return expected, found


TOTALS: dict[str, list[float]] = {}


def activations(columns: int, dtype: torch.dtype) -> Tensor:
    """Made up and correlated, as a layer's inputs are: [BATCH, columns]."""
    shared = torch.randn(BATCH, 64, device="cuda") @ torch.randn(64, columns, device="cuda") / 8
    return ((torch.randn(BATCH, columns, device="cuda") + shared) * torch.rand(columns, device="cuda").exp()).to(dtype)


def gathered(columns: int, dtype: torch.dtype) -> Tensor:
    """H of TOKENS tokens, and print what it took beside FP32 products."""
    batches = [activations(columns, dtype) for _ in range(4)]
    repeats = TOKENS // BATCH // len(batches)

    def gather() -> Statistics:
        seen = Statistics(torch.zeros(columns, columns, device="cuda"), torch.zeros(columns, device="cuda"))
        for _ in range(repeats):
            for batch in batches:
                seen.add(batch)
        seen.complete()
        return seen

    def exactly() -> Tensor:
        total = torch.zeros(columns, columns, device="cuda")
        for _ in range(repeats):
            for batch in batches:
                total.addmm_(batch.float().T, batch.float())
        return total

    exactly(), gather()
    (plain, exact), (ours, seen) = timed(exactly), timed(gather)
    TOTALS["H"] = [a + b for a, b in zip(TOTALS.get("H", [0.0, 0.0]), (plain, ours))]
    error = float((seen.hessian - exact).norm() / exact.norm())
    kind = {torch.float32: "FP32 inputs", torch.bfloat16: "BF16 inputs"}[dtype]
    print(f"  {'H, ' + kind:42} {plain:8.3f} s FP32  {ours:8.3f} s ours    {plain / ours:6.1f}×, relative error {error:.1e}", flush=True)
    return seen.hessian


def left(layer: GroupedIntegers, weight: Tensor, hessian: Tensor) -> float:
    """trace(E·H·Eᵀ) of every 16th row, in FP64."""
    error = (layer.dequantize() - weight)[::16].double()
    return float(((error @ hessian.double()) * error).sum())


def equal(first: Tensor, second: Tensor) -> str:
    """How many are equal, in words."""
    differ = int((first != second).sum())
    return f"{100 * (1 - differ / first.numel()):.4f} % equal ({differ} of {first.numel()} differ)"


def measure(rows: int, columns: int, dtype: torch.dtype) -> None:
    """All stages of one matrix."""
    hessian = gathered(columns, dtype)
    weight = 0.02 * torch.randn(rows, columns, device="cuda")
    places = column_order(hessian.diagonal(), GROUP, "group")
    (factor, note), _ = compared("inverse_factor", lambda: inverse_factor(hessian, places, 0.01))
    assert factor is not None
    assert note == ""
    for symmetric in (True, False):
        options = (BITS, GROUP, symmetric, "group", True, True, "")
        (plain, _), (ours, _) = compared(f"one_pass{'' if symmetric else ' asymmetric'}", lambda: one_pass(weight, factor, places, *options))
        print(f"    codes {equal(plain.codes, ours.codes)}; scales {equal(plain.scales, ours.scales)}")
        if symmetric:
            kept = plain
            errors = [left(layer, weight, hessian) for layer in (plain, ours)]
    print(f"    E·H·Eᵀ of the kernels' codes {errors[1] / errors[0]:.6f} of the plain ones'")
    del factor, plain, ours
    damped = damp(shrink(hessian.clone(), 0.9))
    (plain_codes, _), (codes, _) = compared("descend, one round", lambda: descend(kept.codes, kept.points, weight, damped))
    print(f"    codes {equal(plain_codes, codes)}")
    moved = replace(kept, codes=plain_codes)
    plain, ours = compared("refit_scales", lambda: refit_scales(moved, weight, damped))
    print(f"    scales {equal(plain.scales, ours.scales)}")
    (plain, _), (ours, _) = compared("settle, two rounds of both", lambda: settle(kept, weight, damped))
    errors = [left(layer, weight, damped) for layer in (kept, plain, ours)]
    print(f"    codes {equal(plain.codes, ours.codes)}; E·H·Eᵀ {errors[1] / errors[0]:.6f} of before, by the kernels {errors[2] / errors[0]:.6f}")
    del plain, ours, kept, moved, damped
    plain, ours = compared("gptq, all of it", lambda: gptq(weight, hessian, BITS, GROUP, True, "group", True, trust=0.9))
    errors = [left(layer, weight, hessian) for layer in (plain, ours)]
    print(f"    codes {equal(plain.codes, ours.codes)}; E·H·Eᵀ of the kernels' codes {errors[1] / errors[0]:.6f} of the plain ones'")
    blocks, damped = encode(weight, "Q4_K", hessian.diagonal() / TOKENS), damp(shrink(hessian, 0.9))
    plain_blocks, our_blocks = compared("settle_blocks Q4_K", lambda: settle_blocks(blocks, weight, damped))
    print(f"    codes {equal(plain_blocks.codes, our_blocks.codes)}")


def main(shapes: dict[str, tuple[int, int]]) -> None:
    if not kernels.run_on(torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")):
        sys.exit("the kernels need an NVIDIA GPU of the Ampere generation or later, and Triton")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {BITS} bits, groups of {GROUP}, {TOKENS} tokens")
    torch.manual_seed(0)
    for name, (rows, columns) in shapes.items():
        print(f"{name} [{rows}, {columns}]")
        torch.cuda.reset_peak_memory_stats()
        with torch.no_grad():
            measure(rows, columns, torch.float32 if name in ("query, key, value", "gate, up") else torch.bfloat16)
        print(f"  peak of the device {torch.cuda.max_memory_allocated() / 1e9:.2f} GB", flush=True)
    print("all matrices together, seconds:")
    for stage, (plain, ours) in TOTALS.items():
        print(f"  {stage:30} {plain:8.3f} plain {ours:8.3f} kernels")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="one matrix of 1024 by 1024")
    main(SMALL if parser.parse_args().small else BLOCK)
