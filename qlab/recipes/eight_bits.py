"""Weights and activations in 8 bits: SmoothQuant's migration or none, rounded to nearest or by GPTQ; stored as compressed-tensors."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

from qlab.methods.activations import best_smoothing, largest_step
from qlab.methods.grid import GroupedIntegers
from qlab.recipes.integers import Integers
from qlab.recipes.layouts import W8A8, W8A8_STATIC, Layout
from qlab.walk.block import Block
from qlab.walk.statistics import Statistics
from qlab.walk.walk import Quantized

PATTERN = re.compile(r"(smooth-)?(rtn|gptq)-w8a8(-static)?")


@dataclass(frozen=True)
class EightBits(Integers):
    """INT8 both ways: a scale a row for weights, one a token for activations, which the runtime finds as it goes (W8A8, dynamic). With
    `static`, all tokens' activations before a layer share one scale, by the largest that the calibration text has there, and what is larger
    is cut off: the runtime saves a pass over them, and an outlier token makes the steps coarse for all.

    `smooth`: activations' outlier channels are divided by a scale that the layer's weights are multiplied with, folded into the norm
    before (SmoothQuant, Xiao et al. 2023; which scale: qlab.methods.activations). Codes are then rounded to nearest, on grids that cover
    their rows, or by GPTQ. No better grids are searched with the former: groups as long as a row make the search slow, and rounded
    activations cost more than it gains.
    """

    method: str = "gptq"
    bits: int = 8
    group_size: int = -1
    symmetric: bool = True
    order: str = "group"
    smooth: bool = True
    static: bool = False

    @property
    def name(self) -> str:
        return f"{'smooth-' if self.smooth else ''}{self.method}-w8a8{'-static' if self.static else ''}"

    @property
    def layout(self) -> Layout:
        return W8A8_STATIC if self.static else W8A8

    @property
    def scales_inputs(self) -> bool:
        return self.smooth

    def _take(
        self, found: Quantized, block: Block, part: Block, name: str, layer: GroupedIntegers, original: Tensor, seen: Statistics
    ) -> None:
        super()._take(found, block, part, name, layer, original, seen)
        if self.static:
            found.stored[f"{part.prefix}{name}.input_scale"] = largest_step(seen.largest).reshape(1).cpu()

    def _best_scale(self, weight: Tensor, magnitude: Tensor, mean_square: Tensor) -> Tensor:
        return best_smoothing(weight, mean_square)


def parse_eight_bits(name: str) -> EightBits | None:
    """The recipe of a short name such as smooth-gptq-w8a8, if it is one of this family."""
    match = PATTERN.fullmatch(name)
    return EightBits(match[2], search=match[2] == "gptq", smooth=bool(match[1]), static=bool(match[3])) if match else None
