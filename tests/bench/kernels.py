"""GPTQ's stages on a block's matrices, by the plain functions and by the kernels: seconds, equal codes, the error left, peak memory.

`python -m tests.bench.kernels`, on a machine with a GPU; with `--small` on matrices that any card holds. It needs PyTorch alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar
from unittest.mock import patch

import torch
from torch import Tensor

from qlab.methods import kernels
from qlab.methods.gptq import column_order, gptq, inverse_factor, one_pass
from qlab.methods.grid import GroupedIntegers
from qlab.methods.grid_search import refit_scales
from qlab.methods.hessian import damp, shrink
from qlab.methods.kquants.blocks import encode
from qlab.methods.settle import descend, settle, settle_blocks
from qlab.walk.statistics import Statistics

BITS, GROUP = 4, 128
# Of a block of Llama-3.1-8B, [out, in] of what is quantized as one matrix. Norms hand on FP32, attention and the MLP's middle BF16.
BLOCK = {
    "query, key, value": (6144, 4096, torch.float32),
    "attention's output": (4096, 4096, torch.bfloat16),
    "gate, up": (28672, 4096, torch.float32),
    "down": (4096, 14336, torch.bfloat16),
}
SMALL = {"small": (1024, 1024, torch.float32)}
TOKENS, BATCH = 128 * 512, 8 * 512
T = TypeVar("T")


@dataclass
class Bench:
    """Runs a stage by the plain functions and by the kernels, prints both times, and sums them up over all matrices."""

    totals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def compare(self, stage: str, work: Callable[[], T], plain: Callable[[], T] | None = None) -> tuple[T, T]:
        """Both results, the plain one first; the kernels once more beforehand, which compiles them.

        `plain` is `work` without kernels unless it is given.
        """
        with patch.object(kernels, "run_on", lambda device: False):
            slow, expected = timed(plain or work)
        work()  # compiles
        quick, found = timed(work)
        before = self.totals.get(stage, (0.0, 0.0))
        self.totals[stage] = (before[0] + slow, before[1] + quick)
        print(f"  {stage:28} {slow:7.3f} s plain {quick:7.3f} s kernels {slow / quick:6.1f}×", flush=True)
        return expected, found


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds until the GPU is done, and the result."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return time.perf_counter() - started, result


def activations(columns: int, dtype: torch.dtype) -> Tensor:
    """Made up and correlated, as a layer's inputs are: [BATCH, columns]."""
    shared = torch.randn(BATCH, 64, device="cuda") @ torch.randn(64, columns, device="cuda") / 8
    return ((torch.randn(BATCH, columns, device="cuda") + shared) * torch.rand(columns, device="cuda").exp()).to(dtype)


def gathered(bench: Bench, columns: int, dtype: torch.dtype) -> Tensor:
    """H of TOKENS tokens: as `Statistics` gathers it, and in FP32 products throughout."""
    batches = [activations(columns, dtype) for _ in range(4)] * (TOKENS // BATCH // 4)

    def ours() -> Tensor:
        seen = Statistics(torch.zeros(columns, columns, device="cuda"), torch.zeros(columns, device="cuda"))
        for batch in batches:
            seen.add(batch)
        seen.complete()
        return seen.hessian

    def exactly() -> Tensor:
        total = torch.zeros(columns, columns, device="cuda")
        for batch in batches:
            total.addmm_(batch.float().T, batch.float())
        return total

    exactly()
    exact, found = bench.compare("H", ours, exactly)
    print(f"    of {str(dtype).split('.')[1]} inputs; relative error {float((found - exact).norm() / exact.norm()):.1e}")
    return found


def left(layer: GroupedIntegers, weight: Tensor, hessian: Tensor) -> float:
    """trace(E·H·Eᵀ) of every 16th row, in FP64."""
    error = (layer.dequantize() - weight)[::16].double()
    return float(((error @ hessian.double()) * error).sum())


def equal(what: str, first: Tensor, second: Tensor) -> str:
    """How many are equal, in words."""
    differ = int((first != second).sum())
    return f"{what} {100 * (1 - differ / first.numel()):.4f} % equal ({differ} of {first.numel()} differ)"


def measure(bench: Bench, rows: int, columns: int, dtype: torch.dtype) -> None:
    """All stages of one matrix."""
    hessian = gathered(bench, columns, dtype)
    weight = 0.02 * torch.randn(rows, columns, device="cuda")
    layer = measure_pass(bench, weight, hessian)
    measure_settling(bench, layer, weight, damp(shrink(hessian.clone(), 0.9)))
    plain, ours = bench.compare("gptq, all of it", lambda: gptq(weight, hessian, BITS, GROUP, True, "group", True, trust=0.9))
    ratio = left(ours, weight, hessian) / left(plain, weight, hessian)
    print(f"    {equal('codes', plain.codes, ours.codes)}; E·H·Eᵀ of the kernels' in parts of the plain one's {ratio:.6f}")


def measure_pass(bench: Bench, weight: Tensor, hessian: Tensor) -> GroupedIntegers:
    """The factor and the walk over the columns; return what the plain walk gives, with symmetric grids."""
    places = column_order(hessian.diagonal(), GROUP, "group")
    (factor, _), _ = bench.compare("inverse_factor", lambda: inverse_factor(hessian, places, 0.01))
    assert factor is not None
    found = []
    for stage, symmetric in (("one_pass", True), ("one_pass, asymmetric", False)):
        work = partial(one_pass, weight, factor, places, BITS, GROUP, symmetric, "group", True, True, "")
        (plain, _), (ours, _) = bench.compare(stage, work)
        ratio = left(ours, weight, hessian) / left(plain, weight, hessian)
        print(f"    {equal('codes', plain.codes, ours.codes)}; {equal('scales', plain.scales, ours.scales)}; E·H·Eᵀ {ratio:.6f}")
        found.append(plain)
    return found[0]


def measure_settling(bench: Bench, layer: GroupedIntegers, weight: Tensor, hessian: Tensor) -> None:
    """Going over finished codes, by its parts, as a whole, and for llama.cpp's blocks."""
    (codes, _), (our_codes, _) = bench.compare("descend, one round", lambda: descend(layer.codes, layer.points, weight, hessian))
    print(f"    {equal('codes', codes, our_codes)}")
    moved = replace(layer, codes=codes)
    plain, ours = bench.compare("refit_scales", lambda: refit_scales(moved, weight, hessian))
    print(f"    {equal('scales', plain.scales, ours.scales)}")
    (plain, _), (ours, _) = bench.compare("settle, two rounds of both", lambda: settle(layer, weight, hessian))
    before, *after = (left(each, weight, hessian) for each in (layer, plain, ours))
    print(f"    {equal('codes', plain.codes, ours.codes)}; E·H·Eᵀ {after[0] / before:.6f} of before, kernels {after[1] / before:.6f}")
    blocks = encode(weight, "Q4_K", hessian.diagonal() / TOKENS)
    first, second = bench.compare("settle_blocks, Q4_K", lambda: settle_blocks(blocks, weight, hessian))
    print(f"    {equal('codes', first.codes, second.codes)}")


def main(shapes: dict[str, tuple[int, int, torch.dtype]]) -> None:
    if not (torch.cuda.is_available() and kernels.run_on(torch.device("cuda"))):
        sys.exit("the kernels need an NVIDIA GPU of the Ampere generation or later, and Triton")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {BITS} bits, groups of {GROUP}, {TOKENS} tokens")
    torch.manual_seed(0)
    start = torch.eye(64, device="cuda")
    inverse_factor(start, torch.arange(64, device="cuda"), 0.01)  # starts the libraries, which takes a third of a second
    bench = Bench()
    for name, (rows, columns, dtype) in shapes.items():
        print(f"{name} [{rows}, {columns}]")
        torch.cuda.reset_peak_memory_stats()
        with torch.no_grad():
            measure(bench, rows, columns, dtype)
        print(f"  peak of the device {torch.cuda.max_memory_allocated() / 1e9:.2f} GB", flush=True)
    print("all matrices together")
    for stage, (plain, ours) in bench.totals.items():
        print(f"  {stage:28} {plain:7.3f} s plain {ours:7.3f} s kernels {plain / ours:6.1f}×")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="one matrix of 1024 by 1024")
    main(SMALL if parser.parse_args().small else BLOCK)
