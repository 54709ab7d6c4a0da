"""Lesson 5: what double quantization stores in place of the blocks' absmax, and how far it moves them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from qlab.methods.nf4 import nf4


@dataclass(frozen=True)
class Nested:
    """`single` and `double`: the bytes that a layer takes, by what they hold, with absmax as it is and quantized again.

    `exact` and `stored` float32 [blocks]: the absmax of every block, and what comes back of it once it is quantized again.
    """

    weights: int
    single: dict[str, int]
    double: dict[str, int]
    exact: Tensor
    stored: Tensor

    def bits(self, held: dict[str, int]) -> float:
        """Bits a weight."""
        return 8 * sum(held.values()) / self.weights

    @property
    def moved(self) -> float:
        """By how much absmax moves, relative to its size, in the mean over the blocks."""
        return float(((self.stored - self.exact).abs() / self.exact.clamp(min=1e-30)).mean())


def nested_bytes(weight: Tensor) -> Nested:
    """NF4 of a weight [out, in], once with each block's absmax in FP32 and once with it in 8 bits."""
    plain, doubled = nf4(weight), nf4(weight, double=True)
    nested = doubled.nested
    assert nested is not None
    codes = (len(plain.codes) + 1) // 2  # two codes share a byte
    single = {"codes": codes, "absmax": plain.absmax.nbytes}
    double = {"codes": codes, "absmax": nested.codes.nbytes, "scales of absmax": nested.absmax.nbytes + nested.offset.nbytes}
    return Nested(weight.numel(), single, double, plain.absmax.cpu(), doubled.absmax.cpu())
