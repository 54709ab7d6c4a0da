"""Walks on a CPU by the plain functions and by the kernels that numba compiles, in turns: seconds, and how many codes are the same.

`python -m tests.bench.compiled --model smollm2` (eight minutes on two cores). The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from qlab.artifacts.artifact import fit, quantize_model
from qlab.methods import kernels
from qlab.models.loading import load_tokenizer
from qlab.models.opening import OpenedModel, locate
from qlab.models.texts.windows import read_windows
from qlab.recipes import Recipe, parse
from qlab.support.processes.process import run_isolated
from qlab.workbook.lesson import quiet


def walk(source: OpenedModel, recipe: str, windows: torch.Tensor, out: Path, by_kernels: bool) -> float:
    """Seconds of a walk in this process, without its start, and without those that numba takes to make itself ready."""
    if not by_kernels:
        kernels.compiled = lambda: False  # type: ignore[assignment]
    kernels.found("search_grid", torch.device("cpu"))
    started = time.perf_counter()
    quantize_model(source, [parse(recipe)], windows, out)
    return time.perf_counter() - started


def same(source: OpenedModel, recipe: Recipe, one: Path, other: Path) -> float:
    """The share of weights outside embedding and head that are the same in both artifacts."""
    checkpoints = [locate(str(folder / recipe.name)).checkpoint for folder in (one, other)]
    equal = total = 0
    for name in source.layout.linear:  # names of weights
        first, second = (checkpoint.read(name) for checkpoint in checkpoints)
        equal, total = equal + int((first == second).sum()), total + first.numel()
    return equal / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--recipe", nargs="+", default=["gptq-w4g64", "awq-w4g64", "q4_k_m"])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--windows", type=int, default=16)
    options = parser.parse_args()
    quiet()
    source = locate(options.model)
    windows = read_windows("docstrings", load_tokenizer(source), 256, options.windows).windows
    for name in options.recipe:
        (fitted,) = fit(source, [parse(name)])
        with tempfile.TemporaryDirectory(prefix="qlab-bench-") as place:
            out = {kind: Path(place) / kind for kind in ("plain", "kernels")}
            for turn in range(options.turns):
                seconds = {}
                for kind, folder in out.items():
                    here = folder if turn == 0 else folder / str(turn)
                    seconds[kind] = run_isolated(walk, source, name, windows, here, kind == "kernels").value
                ratio = seconds["kernels"] / seconds["plain"]
                print(f"{name}: {seconds['plain']:6.1f} s plain, {seconds['kernels']:6.1f} s by kernels: {ratio:.2f}", flush=True)
            print(f"{name}: {same(source, fitted.recipe, out['plain'], out['kernels']):.4%} of the weights are the same", flush=True)


if __name__ == "__main__":
    main()
