"""Recipes of 4-bit NormalFloat, and of FP4, its control, as bitsandbytes stores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qlab.formats import bitsandbytes as bnb
from qlab.formats.folder import finish_folder, half_precision
from qlab.methods.nf4 import nf4
from qlab.models.opening import OpenedModel
from qlab.recipes.recipe import Walked
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
        found = Quantized({})
        for name, tensor in block.module.state_dict().items():
            layer = name.removesuffix(".weight")
            if layer not in block.layers:
                found.stored |= self.keep(source, block.prefix + name, tensor)
                continue
            quantized = nf4(half_precision(block.prefix + name, tensor), kind=self.kind, double=self.double)
            found.stored |= {f"{block.prefix}{layer}.{kind}": part for kind, part in bnb.pack(quantized).items()}
            found.errors[layer] = float((quantized.dequantize() - tensor).square().sum() / tensor.square().sum().clamp(min=1e-30))
        return found

    def assemble(self, source: OpenedModel, parts: Sequence[Path], out: Path) -> None:
        finish_folder(source.folder, source.config, parts, out, bnb.quantization_config(self.kind, self.double))
