"""Recipes of 4-bit NormalFloat, and of FP4, its control, as bitsandbytes stores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from qlab.formats import bitsandbytes as bnb
from qlab.formats.half import half_precision
from qlab.methods.nf4 import nf4
from qlab.models.opening import OpenedModel
from qlab.recipes.fitting import left_alone
from qlab.recipes.recipe import Walked
from qlab.recipes.without_data import quantize_each
from qlab.walk.block import Block
from qlab.walk.walk import Calibration, Quantized


@dataclass(frozen=True)
class NF4(Walked):
    """4-bit NormalFloat (or FP4, its control) as bitsandbytes stores it; no calibration."""

    kind: str = "nf4"
    double: bool = True
    data = False

    @property
    def name(self) -> str:
        return f"{self.kind}{'' if self.double else '-single'}"

    @property
    def format(self) -> str:
        return "bitsandbytes"

    def quantize_block(self, source: OpenedModel, block: Block, calibration: Calibration | None) -> Quantized:
        def encode(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            quantized = nf4(half_precision(name, weight, source.trained_in), kind=self.kind, double=self.double)
            return bnb.pack(quantized), quantized.dequantize()

        return quantize_each(self, source, block, encode, {})

    def assemble(self, source: OpenedModel, parts: Sequence[Path], out: Path, largest: float) -> None:
        apart = left_alone(source)
        skipped = ["lm_head", *apart] if apart else []
        self.finish(source, parts, out, bnb.quantization_config(self.kind, self.double, skipped=skipped), largest)
