"""The part 'large' of `python -m tests.bench.quantize`: a Llama of 8B or 70B in shape, made up, and what one block of it takes."""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch

from qlab.artifacts.artifact import quantize_model
from qlab.models.loading import load_tokenizer
from qlab.models.opening import locate
from qlab.models.texts.windows import read_windows
from qlab.recipes import parse
from qlab.support.processes.process import peak_bytes, run_isolated
from qlab.support.stages import profiled
from tests.bench.made_up import make_checkpoint

LARGE = ["rtn-w4g128", "awq-w4g128", "gptq-w4g128", "tuned-w4g128", "nf4", "q4_k_m", "awq-w4g128+gptq-w4g128+nf4+q4_k_m"]
SHAPES = {  # a block, how many a model has, and how many are walked over
    "8B": ({"hidden": 4096, "mlp": 14336, "heads": 32, "kv_heads": 8, "rows": 128256}, 32, 9),
    "70B": ({"hidden": 8192, "mlp": 28672, "heads": 64, "kv_heads": 8, "rows": 128256}, 80, 3),
}


def large(work: Path, options: argparse.Namespace) -> None:
    """A Llama of 8B or 70B in shape: walks of one block and of several, and the whole estimated from their difference."""
    shape, blocks, many = SHAPES[options.shape]
    many = options.large_blocks or many
    models = {n: make_checkpoint(work / f"large-{n}", n, alike=True, **shape) for n in (1, many)}
    device, windows = options.device, options.large_windows
    card = torch.cuda.get_device_name() if device != "cpu" else device
    print(f"{options.shape} shape, {windows} × {options.large_length} calibration tokens, {card}")
    for together in options.recipes:
        one, block, peak, stages = run_isolated(blocks_of, models, together.split("+"), options, work).value
        print(
            f"{together:14} {block:6.2f} s a block, {one + (blocks - 1) * block:5.0f} s for {blocks}; peak {peak / 1e9:.2f} GB on {device}",
            flush=True,
        )
        for line in stages:
            print(f"    {line}", flush=True)


def blocks_of(models: dict[int, Path], names: list[str], options: argparse.Namespace, work: Path) -> tuple[float, float, int, list[str]]:
    """Of walks over models of so many blocks: seconds of one block's walk, seconds of each further block, peak bytes (of the GPU's memory
    where there is one), and with --profile where the time of the longest went. The first walk, which compiles kernels, is not counted."""
    few, many = min(models), max(models)
    text = read_windows(options.calibration, load_tokenizer(locate(str(models[few]))), options.large_length, options.large_windows).windows

    def seconds(blocks: int) -> float:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=work) as out:
            quantize_model(locate(str(models[blocks])), [parse(name) for name in names], text, Path(out), device=options.device)
            return time.perf_counter() - started

    seconds(few)
    one, more = seconds(few), seconds(many)
    peak = peak_bytes() if options.device == "cpu" else torch.cuda.max_memory_allocated()
    with profiled(options.device) if options.profile else nullcontext() as stages:
        if stages:
            seconds(many)
    return one, (more - one) / (many - few), peak, stages.lines() if stages else []
