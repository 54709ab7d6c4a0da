"""What a walk will take, before it starts: memory and disk, and time (qlab.artifacts.duration), from the checkpoint's shapes alone.

The peak is that of one block, whatever their number: its weights in FP32, H of each group of layers, and what the
hungriest recipe needs beside them; of a mixture also the experts that are encoded already (qlab.artifacts.block_shape). Factors were fitted
to measured peaks; `make bench-quantize` and tests.bench.expert_memory print both.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import psutil
import torch

from qlab.artifacts.block_shape import Group, largest_block, waiting
from qlab.artifacts.duration import duration, time_text
from qlab.formats.gguf.encoding import weights_at_once
from qlab.methods.grid_search import REFIT_ROWS
from qlab.methods.kquants.blocks import DEVICE_CHUNK
from qlab.methods.nf4 import CHUNK as NF4_BLOCKS
from qlab.models.opening import OpenedModel
from qlab.recipes import FP8, GGUF, NF4, Integers, WalkedRecipe
from qlab.support.errors import UserError
from qlab.support.processes.process import peak_bytes
from qlab.support.wording import counted
from qlab.walk.block import usual_batch
from qlab.walk.sensitivity import AT_ONCE, sensed_windows

__all__ = ["Budget", "parse_bytes", "peak_bytes", "predict", "size_text"]

LIBRARIES = 85e6  # what torch and MKL set up once they compute, the tokenizer, the calibration text
KERNELS = 140e6  # what numba takes in a process that has not loaded it before (qlab.methods.kernels.cpu), its own library mostly
# Weights, gradients, moments and running means of a block that is tuned, in blocks; and glibc's share: a tensor below 32 MiB comes from its
# heap, which these leave full of holes.
TUNED, HOLES, OWN_PAGES = 6.7, 2.8, 1 << 25
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
LACKING = "are needed and"  # in every message of what a machine has too little of


@dataclass(frozen=True)
class Budget:
    """Bytes of memory and disk, seconds, and the calibration windows to compute at a time. `choosing`: what is held before the walk, beside
    the process, where widths are chosen by the model's predictions."""

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
    choosing: float = 0.0

    @property
    def total_of_a_block(self) -> float:
        """What a block needs at its peak, beside the process."""
        return self.block + self.statistics + max(self.recipe, self.activations)

    @property
    def total(self) -> float:
        """Peak memory of the process, or of one for each device."""
        return max(self.devices * (self.start + max(self.rest, self.total_of_a_block)), self.start + self.choosing)

    def text(self) -> str:
        """The prediction, for people."""
        return (
            f"predicted: {size_text(self.total)} of memory, {size_text(self.disk)} of disk at work, about {time_text(self.seconds)}\n"
            f"memory: {size_text(self.start)} for the process, and the larger of {size_text(self.rest)} (embedding or head) and "
            f"{size_text(self.total_of_a_block)} (one of {self.blocks} blocks: its weights {size_text(self.block)}, statistics "
            f"{size_text(self.statistics)}, and the larger of {size_text(self.recipe)} to quantize and {size_text(self.activations)} to "
            f"run {counted(self.batch, 'window')} at a time)"
            + (f"; {self.devices} such processes" if self.devices > 1 else "")
            + (f"\nbefore that, to choose widths, the whole model is in memory: {size_text(self.choosing)}" if self.choosing else "")
        )

    def check(self, out: Path, device: str) -> None:
        """Raises UserError where the machine has too little disk, or it or the GPU too little memory for this."""
        place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
        if said := too_little(self.disk, shutil.disk_usage(place).free, "of disk", f"in {place}"):
            raise UserError(f"{said}; choose another folder, or make room")
        if device == "cpu" and (said := too_little(self.total, psutil.virtual_memory().available + self.start, "of memory", "here")):
            raise UserError(f"{said}; close programs, or use a larger machine")
        if torch.device(device).type == "cuda":
            wanted, free = max(self.rest, self.total_of_a_block, self.choosing), torch.cuda.mem_get_info(device)[0]
            if said := too_little(wanted, free, "of memory", f"on {device}"):
                raise UserError(f"{said}; see with nvidia-smi who uses it, give a --max-memory that is free, or --device cpu")


def too_little(needed: float, free: float, what: str, where: str) -> str:
    """What to say where fewer bytes are free than needed; empty where there are enough."""
    if free >= needed:
        return ""
    return f"{size_text(needed)} {what} {LACKING} {size_text(free)} free {where}, {size_text(needed - free)} too little"


def predict(
    source: OpenedModel, recipes: Sequence[WalkedRecipe], windows: tuple[int, ...], limit: float | None = None, device: str = "cpu",
    devices: int = 1, choosing: float = 0.0,
) -> Budget:  # fmt: skip
    """The budget of a walk over `windows` (their number and length) that stays below `limit` bytes of memory, on so many `devices`; before
    it, `choosing` bytes are held to choose widths.

    Raises:
        UserError: even one window at a time needs more than `limit`, or choosing widths does.
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
    rest += encoding(recipes, source, device)
    if any(recipe.targets for recipe in recipes):  # the head in FP32, and as it was read or in BF16; logits and what is drawn from them
        rows, width = layout.shapes[layout.head]
        rest = max(rest, 6.0 * rows * width + 24.0 * AT_ONCE * rows + LIBRARIES)
    token = 4.0 * (3 * layout.hidden + max(out for _, out in groups) + max(width for width, _ in groups))
    disk = disk_needed(source, recipes, windows)
    start = float(psutil.Process().memory_info().rss)
    compiled = device == "cpu" and "numba" not in sys.modules and any(map(uses_kernels, recipes))
    libraries = LIBRARIES + KERNELS * compiled
    if limit is not None and choosing and start + choosing > limit:
        raise UserError(
            f"to choose widths, the whole model is in memory: {size_text(start + choosing)} with the process, more than the "
            f"{size_text(limit)} allowed; a recipe of one width needs one block at a time"
        )
    encoded = [waiting(recipe, block, source) for recipe in recipes]
    work = max(working(recipe, groups, windows, device, block.weights) + size for recipe, size in zip(recipes, encoded)) + libraries
    # A sequential recipe runs the block as quantized before its experts are written.
    beside = max((size for recipe, size in zip(recipes, encoded) if recipe.sequential), default=0.0)
    seconds = duration(block, recipes, windows, blocks, sum(outside) / 2, device, devices, source.experts_per_token)
    usual = min(usual_batch(windows[1], device), windows[0])
    for batch in (usual >> halvings for halvings in range(usual.bit_length())):
        activations = batch * windows[1] * token * data + beside + libraries
        found = Budget(start, 4.0 * block.weights, statistics, work, activations, rest, disk, seconds, batch, blocks, devices, choosing)
        if limit is None or found.total <= limit:
            return found
    raise UserError(
        f"the walk needs {size_text(found.total)} even with one window at a time, more than the {size_text(limit or 0)} allowed: "
        f"{size_text(found.block)} a block, {size_text(found.statistics)} statistics, {size_text(found.recipe)} the recipe at work"
    )


def encoding(recipes: Sequence[WalkedRecipe], source: OpenedModel, device: str) -> float:
    """Bytes that a GPU has beside the largest tensor outside the blocks while that is encoded: what is computed of some of its weights at a
    time, and the codes and bytes of some (qlab.methods.kquants.blocks.encode, qlab.formats.gguf.encoding.encode_rows)."""
    shapes = [source.layout.shapes[name] for name in source.layout.rest if any(recipe.encodes(source, name) for recipe in recipes)]
    if device == "cpu" or not shapes:
        return 0.0
    weights = max(map(prod, shapes))
    return 24.0 * min(weights, DEVICE_CHUNK) + 2.0 * min(weights, weights_at_once(torch.device(device)))


def uses_kernels(recipe: WalkedRecipe) -> bool:
    """Whether a recipe searches grids, rounds column by column or settles codes, which numba compiles on CPUs."""
    if isinstance(recipe, GGUF):
        return recipe.settles
    return isinstance(recipe, Integers) and (recipe.search or recipe.method not in ("rtn", "awq"))


def disk_needed(source: OpenedModel, recipes: Sequence[WalkedRecipe], windows: tuple[int, ...]) -> float:
    """Bytes of disk that a walk over `windows` (their number and length) needs while it works: encoded tensors twice, and activations."""
    stored = 2 * sum(source.checkpoint.bytes_of(name) for name in source.layout.shapes) * 0.35 * len(recipes)
    streams = 2 * any(recipe.data for recipe in recipes) + 2 * sum(recipe.sequential for recipe in recipes)
    streams += (streams // 2) * bool(source.layout.pieces)  # what experts read
    # What all blocks read of the text whose gradients are taken, until these are in its place (qlab.walk.sensitivity).
    sensed = (source.layout.count + 3) * sensed_windows(*windows) * any(recipe.targets for recipe in recipes)
    return stored + (streams * windows[0] + sensed) * 4 * windows[1] * source.layout.hidden


def working(recipe: WalkedRecipe, groups: Sequence[Group], windows: tuple[int, ...], device: str, weights: int) -> float:
    """Bytes that a recipe needs beside a block of so many `weights` and its statistics; `groups` are worked on one after the other, and
    tuning runs some of the `windows` (their number, and the tokens of each) through the whole block."""
    largest = 4.0 * max(width * out for width, out in groups)
    if isinstance(recipe, NF4):
        return 16.0 * min(largest / 4, 64 * NF4_BLOCKS) + 1.5 * largest  # temporaries of the blocks that are rounded at once
    if isinstance(recipe, FP8):
        return 3.0 * largest  # of one layer: in steps of its scale, in FP8, and back, and their difference
    if isinstance(recipe, GGUF):
        at_once = weights_at_once(torch.device(device))
        settling = max(4.0 * width**2 + 28.0 * min(width * out, at_once) for width, out in groups) if recipe.settles else 0.0
        return max(1.2 * largest if recipe.data else 0.0, settling)
    assert isinstance(recipe, Integers)
    scaled = sum(4.0 * width**2 for width, _ in groups) if recipe.scales_inputs else 0.0
    if recipe.method in ("rtn", "awq"):
        return scaled + 3.7 * largest
    # What GPTQ fits codes to is an H of its own. Factoring holds nearly three more; rounding the factor, and the weights in three orders
    # and their codes; settling another H, and the weights in four and their codes. What does not grow with the matrix is in LIBRARIES.
    copies = 20.0 if recipe.settles else 15.0
    fits = recipe.settles and recipe.group_size > 0  # the scales by least squares, so many rows at a time, when H is factored no more
    rounding = scaled + max(
        max(
            15.0 * width**2,
            8.0 * width**2 + copies * width * out + 16.0 * fits * min(REFIT_ROWS, out) * (width / recipe.group_size) ** 2,
        )
        for width, out in groups
    )
    if recipe.method != "tuned":
        return rounding
    graph = 4.0 * min(recipe.batch, windows[0]) * windows[1] * (8 * max(width for width, _ in groups) + 12 * groups[0][0])
    return max(rounding, (TUNED + (HOLES if 4 * max(width for width, _ in groups) * groups[0][0] < OWN_PAGES else 0)) * 4 * weights + graph)


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


def size_text(size: float) -> str:
    """2.40 GB, 85.30 MB or 12.0 KB; a GB is 10⁹ bytes."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor / 10:
            return f"{size / factor:.2f} {unit}"
    return f"{size / 1e3:.1f} KB"
