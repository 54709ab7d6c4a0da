"""Lesson 1: the bits of one weight in five formats, and what they stand for.

FP32, FP16: IEEE 754. BF16: FP32's upper half. FP8 E4M3: OCP's 8-bit floating point, "fn": no infinity, NaN where all bits but the sign are
set. INT4: round-to-nearest on the grid of the weight's group. FP8 and INT4 stand beside a scale, as in checkpoints: see
qlab/formats/floats/fp8.py and qlab/methods/rtn.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qlab.methods.rtn import rtn

LARGEST_E4M3 = 448.0


@dataclass(frozen=True)
class Layout:
    """A floating-point format: a sign bit, `exponent` bits, `mantissa` bits; `finite` has no infinity."""

    dtype: torch.dtype
    exponent: int
    mantissa: int
    finite: bool = False

    @property
    def width(self) -> int:
        return 1 + self.exponent + self.mantissa


FLOATS = {
    "FP32": Layout(torch.float32, 8, 23),
    "BF16": Layout(torch.bfloat16, 8, 7),
    "FP16": Layout(torch.float16, 5, 10),
    "FP8 E4M3": Layout(torch.float8_e4m3fn, 4, 3, finite=True),
}
WHOLE = {32: torch.int32, 16: torch.int16, 8: torch.uint8}


@dataclass(frozen=True)
class Stored:
    """A number as `format` stores it: `bits`, highest first, beside `scale` and, of INT4, `zero`, the code that stands for 0."""

    format: str
    bits: str
    scale: float = 1.0
    zero: int = 0

    @property
    def value(self) -> float:
        """The number that comes back; infinite or NaN where the bits say so."""
        if self.format not in FLOATS:
            return (int(self.bits, 2) - self.zero) * self.scale
        layout = FLOATS[self.format]
        sign = -1 if self.bits[0] == "1" else 1
        exponent, mantissa = int(self.bits[1 : 1 + layout.exponent], 2), int(self.bits[1 + layout.exponent :], 2)
        share = mantissa / 2**layout.mantissa
        bias, highest = 2 ** (layout.exponent - 1) - 1, 2**layout.exponent - 1
        if exponent == highest and (share == 1 - 2.0**-layout.mantissa if layout.finite else mantissa):
            return float("nan")
        if exponent == highest and not layout.finite:
            return sign * float("inf")
        number = share * 2.0 ** (1 - bias) if exponent == 0 else (1 + share) * 2.0 ** (exponent - bias)
        return sign * number * self.scale


def stored(row: Tensor, place: int, group_size: int) -> list[Stored]:
    """Weight `place` of a row float32 [in] in each format, which lies in a group of consecutive weights.

    The scale of FP8 takes the row's largest weight to E4M3's largest number; INT4 has the grid of the weight's group.
    """
    weight, row = row[place], row.float().cpu()
    scale = max(float(row.abs().max()), 1e-30) / LARGEST_E4M3
    found = []
    for name, layout in FLOATS.items():
        own = scale if layout.finite else 1.0
        found.append(Stored(name, bits_of(weight.float() / own, layout), own))
    grid = rtn(row[None], 4, group_size)
    group = place // group_size
    return [*found, Stored("INT4", f"{int(grid.codes[0, place]):04b}", float(grid.scales[0, group]), int(grid.zeros[0, group]))]


def bits_of(number: Tensor, layout: Layout) -> str:
    """The bits of a number, float32 [], rounded to a format."""
    whole = int(number.reshape(1).to(layout.dtype).view(WHOLE[layout.width]))
    return f"{whole % 2**layout.width:0{layout.width}b}"


def chosen_weights(row: Tensor, group_size: int) -> dict[str, int]:
    """Weights of the first group of a row, by a name: the largest, the smallest that is not 0, and some between; their places."""
    magnitude = row[:group_size].float().abs().cpu()
    order = [int(place) for place in magnitude.argsort(descending=True) if magnitude[place] > 0] or [0]  # of a pruned group all are 0
    wanted = {
        "largest": 0,
        "large (a quarter is larger)": 1 / 4,
        "middle (half are larger)": 1 / 2,
        "small (most are larger)": 0.9,
        "smallest": 1,
    }
    return {name: order[round(share * (len(order) - 1))] for name, share in wanted.items()}
