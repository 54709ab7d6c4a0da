"""Weights and activations in 8 bits: SmoothQuant's migration or none, rounded to nearest or by GPTQ; stored as compressed-tensors."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

from qlab.methods.activations import best_smoothing
from qlab.recipes.integers import Integers
from qlab.recipes.layouts import W8A8, Layout

PATTERN = re.compile(r"(smooth-)?(rtn|gptq)-w8a8")


@dataclass(frozen=True)
class EightBits(Integers):
    """INT8 both ways: a scale a row for weights, one a token for activations, which the runtime finds as it goes (W8A8, dynamic).

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

    @property
    def name(self) -> str:
        return f"{'smooth-' if self.smooth else ''}{self.method}-w8a8"

    @property
    def layout(self) -> Layout:
        return W8A8

    @property
    def scales_inputs(self) -> bool:
        return self.smooth

    def _best_scale(self, weight: Tensor, magnitude: Tensor, mean_square: Tensor) -> Tensor:
        return best_smoothing(weight, mean_square)


def parse_eight_bits(name: str) -> EightBits | None:
    """The recipe of a short name such as smooth-gptq-w8a8, if it is one of this family."""
    match = PATTERN.fullmatch(name)
    return EightBits(match[2], search=match[2] == "gptq", smooth=bool(match[1])) if match else None
