"""How long a walk will take: floating-point operations, passes over the weights, and operations on single columns.

Factors were fitted to measured times; `make bench-quantize` prints both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from qlab.artifacts.block_shape import BlockShape, Group
from qlab.recipes import FP8, GGUF, NF4, Integers, WalkedRecipe
from qlab.support.threads import half_the_threads
from qlab.walk.sensitivity import sensed_windows
from qlab.walk.walk import observes_original

CALLS = 25  # operations' worth of time that rounding one column takes in a walk over columns
# Passes over weights outside the blocks that a GGUF file encodes (Q8_0 some 20, Q6_K 90); seconds before the first block; bytes a second.
ENDS_GGUF, SET_UP, WRITING = 40.0, 0.3, 5e8


def duration(
    block: BlockShape, recipes: Sequence[WalkedRecipe], windows: tuple[int, ...], blocks: int, outside: float, device: str,
    devices: int = 1, chosen: int = 0,
) -> float:  # fmt: skip
    """Seconds: floating-point operations, passes over the weights, and operations on single columns, each at this machine's speed.

    `outside`: how many weights lie outside the blocks, which are read, encoded where the format has blocks for them, and written.
    Each of several `devices` runs all blocks, and quantizes its share of them. Every token is given to `chosen` of the block's experts.
    """
    product, one_pass, call = speeds(device)
    total, passes, calls = operations(block.groups, recipes, windows, 1.0)
    forward = 2.0 * windows[0] * windows[1] * sum(width * out for width, out in block.groups)
    if block.experts:
        share = min(1.0, (chosen or 1) / block.experts)
        forward += 2.0 * windows[0] * windows[1] * (chosen or 1) * sum(width * out for width, out in block.expert)
        total, passes, calls = (
            own + block.experts * more for own, more in zip((total, passes, calls), operations(block.expert, recipes, windows, share))
        )
    ends = sum(ENDS_GGUF if isinstance(recipe, GGUF) else 0.0 for recipe in recipes) * outside * one_pass
    written = len(recipes) * 2 * outside / WRITING
    if any(recipe.targets for recipe in recipes):  # logits, and gradients of them
        ends += 4.0 * sensed_windows(*windows) * windows[1] * outside * product
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
            total += 3.0 * forward * sensed_windows(*windows) / windows[0]  # forward and back, for gradients of the predictions
            a_step = 3.0 * forward * min(1.0, recipe.batch / windows[0]) + sum(100.0 * width * out for width, out in groups)
            total += recipe.steps * a_step
    return total, passes, calls


def weight_passes(recipe: WalkedRecipe) -> float:
    """How often a recipe goes over a block's weights, element by element."""
    if isinstance(recipe, NF4):
        return 120.0  # most of it the search for the nearest level
    if isinstance(recipe, FP8):
        return 20.0
    if isinstance(recipe, GGUF):
        return 100.0 if recipe.data_matters else 10.0
    assert isinstance(recipe, Integers)
    trials = 17.0 if recipe.symmetric else 23.0  # of a group's grid (qlab.methods.grid_search), each some 17 passes
    return 20.0 + 17.0 * trials * recipe.search + 130.0 * recipe.scales_inputs


@cache  # a plan of many models asks again and again
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


def time_text(seconds: float) -> str:
    """A duration in minutes, or in hours where it is long."""
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.0f} hours"
