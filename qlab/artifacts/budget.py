"""What a walk will take, before it starts: memory, disk and time from the checkpoint's shapes alone.

The peak is that of one block, whatever their number: its weights in FP32, H of each group of layers, and what the
hungriest recipe needs beside them. Factors were fitted to measured peaks; `make bench-quantize` prints both.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from qlab.artifacts.block_shape import BlockShape, Group, largest_block
from qlab.formats.gguf.file import weights_at_once
from qlab.methods.grid_search import REFIT_ROWS
from qlab.methods.nf4 import CHUNK as NF4_BLOCKS
from qlab.models.opening import OpenedModel
from qlab.recipes import GGUF, NF4, Integers, WalkedRecipe
from qlab.recipes.integers import TUNED_WINDOWS
from qlab.support.errors import UserError
from qlab.support.process import peak_bytes
from qlab.support.threads import half_the_threads
from qlab.support.wording import counted
from qlab.walk.walk import observes_original, usual_batch

__all__ = ["Budget", "gigabytes", "parse_bytes", "peak_bytes", "predict"]

LIBRARIES = 85e6  # what torch and MKL set up once they compute, the tokenizer, the calibration text
# Weights, gradients, moments and running means of a block that is tuned, in blocks; and glibc's share: a tensor below 32 MiB comes from its
# heap, which these leave full of holes.
TUNED, HOLES, OWN_PAGES = 6.7, 2.8, 1 << 25
CALLS = 25  # operations' worth of time that rounding one column takes in a walk over columns
# Passes over weights outside the blocks that a GGUF file encodes (Q8_0 some 20, Q6_K 90); seconds before the first block; bytes a second.
ENDS_GGUF, SET_UP, WRITING = 40.0, 0.3, 5e8
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Budget:
    """Bytes of memory and disk, seconds, and the calibration windows to compute at a time."""

    start: float
    block: float
    statistics: float
    recipe: float
    activations: float
    rest: float
    disk: float
    seconds: float
    batch: int
    blocks: int
    devices: int = 1

    @property
    def total_of_a_block(self) -> float:
        """What a block needs at its peak, beside the process."""
        return self.block + self.statistics + max(self.recipe, self.activations)

    @property
    def total(self) -> float:
        """Peak memory of the process, or of one for each device."""
        return self.devices * (self.start + max(self.rest, self.total_of_a_block))

    def text(self) -> str:
        """The prediction, for people."""
        return (
            f"predicted: {gigabytes(self.total)} of memory, {gigabytes(self.disk)} of disk at work, about {time_text(self.seconds)}\n"
            f"memory: {gigabytes(self.start)} for the process, and the larger of {gigabytes(self.rest)} (embedding or head) and "
            f"{gigabytes(self.total_of_a_block)} (one of {self.blocks} blocks: its weights {gigabytes(self.block)}, statistics "
            f"{gigabytes(self.statistics)}, and the larger of {gigabytes(self.recipe)} to quantize and {gigabytes(self.activations)} to "
            f"run {counted(self.batch, 'window')} at a time)" + (f"; {self.devices} such processes" if self.devices > 1 else "")
        )

    def check(self, out: Path, device: str) -> None:
        """Raises UserError where the machine has too little disk, or it or the GPU too little memory for this."""
        place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
        if (free := shutil.disk_usage(place).free) < self.disk:
            needed = f"{gigabytes(self.disk)} of disk are needed and {gigabytes(free)} free in {place}"
            raise UserError(f"{needed}; choose another folder, or make room")
        if device == "cpu" and (free := psutil.virtual_memory().available) + self.start < self.total:
            needed = f"{gigabytes(self.total)} of memory are needed and {gigabytes(free)} free"
            raise UserError(f"{needed}; close programs, or use a larger machine")
        wanted = max(self.rest, self.total_of_a_block)
        if torch.device(device).type == "cuda" and (free := torch.cuda.mem_get_info(device)[0]) < wanted:
            needed = f"{gigabytes(wanted)} of memory are needed on {device} and {gigabytes(free)} free"
            raise UserError(f"{needed}; see with nvidia-smi who uses it, give a --max-memory that is free, or --device cpu")


def predict(
    source: OpenedModel, recipes: Sequence[WalkedRecipe], windows: tuple[int, ...], limit: float | None = None, device: str = "cpu",
    devices: int = 1,
) -> Budget:  # fmt: skip
    """The budget of a walk over `windows` (their number and length) that stays below `limit` bytes of memory, on so many `devices`.

    Raises:
        UserError: even one window at a time needs more than `limit`.
    """
    checkpoint, layout = source.checkpoint, source.layout
    block = largest_block(layout)
    groups = block.groups + block.expert
    data = any(recipe.data for recipe in recipes)
    statistics = sum(4.0 * width**2 for width, _ in groups) if data else 0.0  # of experts, one at a time
    blocks = layout.count
    outside = [checkpoint.bytes_of(name) for name in layout.rest]
    # Outside the blocks, the largest is read from a file that is mapped into memory, and then written: twice its size at both times.
    rest = 2.0 * max(outside, default=0) + LIBRARIES
    token = 4.0 * (3 * layout.hidden + max(out for _, out in groups) + max(width for width, _ in groups))
    disk = disk_needed(source, recipes, windows)
    start = float(psutil.Process().memory_info().rss)
    work = max(working(recipe, groups, windows[1], device, block.weights) for recipe in recipes) + LIBRARIES
    seconds = duration(block.groups, recipes, windows, blocks, sum(outside) / 2, device, devices, block, source.experts_per_token)
    usual = min(usual_batch(windows[1], device), windows[0])
    for batch in (usual >> halvings for halvings in range(usual.bit_length())):
        activations = batch * windows[1] * token * data + LIBRARIES
        found = Budget(start, 4.0 * block.weights, statistics, work, activations, rest, disk, seconds, batch, blocks, devices)
        if limit is None or found.total <= limit:
            return found
    raise UserError(
        f"the walk needs {gigabytes(found.total)} even with one window at a time, more than the {gigabytes(limit or 0)} allowed: "
        f"{gigabytes(found.block)} a block, {gigabytes(found.statistics)} statistics, {gigabytes(found.recipe)} the recipe at work"
    )


def disk_needed(source: OpenedModel, recipes: Sequence[WalkedRecipe], windows: tuple[int, ...]) -> float:
    """Bytes of disk that a walk over `windows` (their number and length) needs while it works: encoded tensors twice, and activations."""
    stored = 2 * sum(source.checkpoint.bytes_of(name) for name in source.layout.shapes) * 0.35 * len(recipes)
    streams = 2 * any(recipe.data for recipe in recipes) + 2 * sum(recipe.sequential for recipe in recipes)
    streams += (streams // 2) * bool(source.layout.pieces)  # what experts read
    return stored + streams * 4 * windows[0] * windows[1] * source.layout.hidden


def working(recipe: WalkedRecipe, groups: Sequence[Group], length: int, device: str, weights: int) -> float:
    """Bytes that a recipe needs beside a block of so many `weights` and its statistics; `groups` are worked on one after the other, and
    tuning runs windows of `length` tokens through the whole block."""
    largest = 4.0 * max(width * out for width, out in groups)
    if isinstance(recipe, NF4):
        return 16.0 * min(largest / 4, 64 * NF4_BLOCKS) + 1.5 * largest  # temporaries of the blocks that are rounded at once
    if isinstance(recipe, GGUF):
        at_once = weights_at_once(torch.device(device))
        settling = max(4.0 * width**2 + 28.0 * min(width * out, at_once) for width, out in groups) if recipe.settles else 0.0
        return max(1.2 * largest if recipe.data else 0.0, settling)
    assert isinstance(recipe, Integers)
    scaled = sum(4.0 * width**2 for width, _ in groups) if recipe.method in ("awq", "awq-gptq") else 0.0
    if recipe.method in ("rtn", "awq"):
        return scaled + 3.7 * largest
    # Factoring H holds it nearly five times; rounding holds one factor and the weights in three orders, settling H and them in five.
    copies = 24.0 if recipe.settles else 15.0
    fits = recipe.settles and recipe.group_size > 0  # the scales by least squares, so many rows at a time, when H is factored no more
    rounding = scaled + max(
        max(
            19.0 * width**2,
            4.0 * width**2 + copies * width * out + 16.0 * fits * min(REFIT_ROWS, out) * (width / recipe.group_size) ** 2,
        )
        for width, out in groups
    )
    if recipe.method != "tuned":
        return rounding
    graph = 4.0 * TUNED_WINDOWS * length * (8 * max(width for width, _ in groups) + 12 * groups[0][0])
    return max(rounding, (TUNED + (HOLES if 4 * max(width for width, _ in groups) * groups[0][0] < OWN_PAGES else 0)) * 4 * weights + graph)


def duration(
    groups: Sequence[Group], recipes: Sequence[WalkedRecipe], windows: tuple[int, ...], blocks: int, outside: float, device: str,
    devices: int = 1, block: BlockShape | None = None, chosen: int = 0,
) -> float:  # fmt: skip
    """Seconds: floating-point operations, passes over the weights, and operations on single columns, each at this machine's speed.

    `outside`: how many weights lie outside the blocks, which are read, encoded where the format has blocks for them, and written.
    Each of several `devices` runs all blocks, and quantizes its share of them. Of the experts of `block`, every token is given `chosen`.
    """
    product, one_pass, call = speeds(device)
    total, passes, calls = operations(groups, recipes, windows, 1.0)
    forward = 2.0 * windows[0] * windows[1] * sum(width * out for width, out in groups)
    if block and block.experts:
        share = min(1.0, (chosen or 1) / block.experts)
        forward += 2.0 * windows[0] * windows[1] * (chosen or 1) * sum(width * out for width, out in block.expert)
        total, passes, calls = (
            own + block.experts * more for own, more in zip((total, passes, calls), operations(block.expert, recipes, windows, share))
        )
    ends = sum(ENDS_GGUF if isinstance(recipe, GGUF) else 0.0 for recipe in recipes) * outside * one_pass
    written = len(recipes) * 2 * outside / WRITING
    a_block = 1.35 * total * product + passes * one_pass + calls * call
    passed_on = 1.35 * forward * product if observes_original(recipes) else 0.0
    return SET_UP + ends + written + blocks * (a_block + (devices - 1) * passed_on) / devices


def operations(
    groups: Sequence[Group], recipes: Sequence[WalkedRecipe], windows: tuple[int, ...], share: float
) -> tuple[float, float, float]:
    """Floating-point operations in products, elements gone over, and operations on single columns, of layers in `groups` that read so
    large a `share` of the tokens."""
    tokens = windows[0] * windows[1] * share
    weights, columns = sum(width * out for width, out in groups), sum(width for width, _ in groups)
    forward = 2.0 * tokens * weights
    observe = forward + 1.25 * tokens * sum(width**2 for width, _ in groups)  # XᵀX by its upper half, in stripes
    total = observe if observes_original(recipes) else 0.0
    passes = calls = 0.0
    for recipe in recipes:
        passes += weight_passes(recipe) * weights
        if share < 1 and recipe.data:
            total += observe  # experts' statistics are made again for each recipe
        if isinstance(recipe, GGUF) and recipe.settles:
            total += sum(6.0 * width**2 * out for width, out in groups)
            calls += CALLS * 2 * columns
        if recipe.sequential:
            total += observe + forward
        if isinstance(recipe, Integers) and recipe.method not in ("rtn", "awq"):
            again = 2.0 + 16.0 * recipe.settles  # for each weight, times the width: rounding, and two rounds of settling
            total += sum(3.0 * width**3 + again * width**2 * out for width, out in groups)
            calls += CALLS * (1 + 2 * recipe.settles) * columns
        if isinstance(recipe, Integers) and recipe.method == "tuned":
            total += forward
            total += recipe.steps * (3.0 * forward * TUNED_WINDOWS / windows[0] + sum(100.0 * width * out for width, out in groups))
    return total, passes, calls


def weight_passes(recipe: WalkedRecipe) -> float:
    """How often a recipe goes over a block's weights, element by element."""
    if isinstance(recipe, NF4):
        return 120.0  # most of it the search for the nearest level
    if isinstance(recipe, GGUF):
        return 100.0 if recipe.data_matters else 10.0
    assert isinstance(recipe, Integers)
    trials = 17.0 if recipe.symmetric else 23.0  # of a group's grid (qlab.methods.grid_search), each some 17 passes
    return 20.0 + 17.0 * trials * recipe.search + 130.0 * (recipe.method in ("awq", "awq-gptq"))


def speeds(device: str) -> tuple[float, float, float]:
    """Seconds of a floating-point operation in a matrix product, of one element in a pass over a tensor, of an operation on one column."""
    matrix, rows, column = (torch.randn(*shape, device=device) for shape in ((1024, 1024), (4096, 64), (1024,)))

    def shortest(work: Callable[[], Tensor], times: int) -> float:
        found = []
        for _ in range(3):
            started = time.perf_counter()
            for _ in range(times):
                result = work()
            float(result.flatten()[0])  # a GPU has done all of it then
            found.append((time.perf_counter() - started) / times)
        return min(found)

    product = shortest(lambda: matrix @ matrix, 1) / (2 * 1024**3)
    with half_the_threads():
        one_pass = shortest(lambda: (rows * rows).sum(-1), 20) / (2 * rows.numel())
        return product, one_pass, shortest(lambda: column * column, 200)


def parse_bytes(text: str) -> float:
    """Bytes of a size such as 8GiB, 500M, 24 GB (powers of 1024, but of 1000 where GB, MB or KB is written).

    Raises:
        UserError: no such size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B?)\s*", text, re.IGNORECASE)
    if not match:
        raise UserError(f"{text!r} is no size: expected such as 8GiB, 500MB")
    unit = UNITS[match[2].upper()]
    return float(match[1]) * (unit if match[3].lower() != "b" or not match[2] else 1000 ** "KMGT".index(match[2].upper()) * 1000)


def time_text(seconds: float) -> str:
    """A duration in minutes, or in hours where it is long."""
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.0f} hours"


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
