"""Recipes of 4-bit NormalFloat, and of FP4, its control, as bitsandbytes stores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from qlab.formats import bitsandbytes as bnb
from qlab.formats.half import half_precision
from qlab.methods.nf4 import nf4
from qlab.models.opening import OpenedModel
from qlab.recipes.fitting import left_alone
from qlab.recipes.recipe import Walked
from qlab.walk.block import Block
from qlab.walk.walk import Calibration, Quantized


@dataclass(frozen=True)
class NF4(Walked):
    """4-bit NormalFloat (or FP4, its control) as bitsandbytes stores it; no calibration.

    So nothing tells whether the activations of a BF16 model fit FP16: such a model stays in BF16, which holds its own tensors exactly.
    """

    kind: str = "nf4"
    double: bool = True
    data = False

    @property
    def name(self) -> str:
        return f"{self.kind}{'' if self.double else '-single'}"

    @property
    def format(self) -> str:
        return "bitsandbytes"

    def dtype(self, source: OpenedModel, largest: float) -> torch.dtype:
        return torch.bfloat16 if source.trained_in == torch.bfloat16 else super().dtype(source, largest)

    def dtype_note(self, source: OpenedModel, largest: float) -> str:
        if source.trained_in == torch.float16:
            return super().dtype_note(source, largest)
        return "stored as BF16, as the original is: without calibration nothing tells whether its activations fit FP16"

    def quantize_block(self, source: OpenedModel, block: Block, calibration: Calibration | None) -> Quantized:
        found, layers = Quantized({}), set(block.layers)
        for name, tensor in block.module.state_dict().items():
            layer = name.removesuffix(".weight")
            if layer not in layers:
                found.stored |= self.keep(source, block.prefix + name, tensor)
                continue
            quantized = nf4(half_precision(block.prefix + name, tensor, source.trained_in), kind=self.kind, double=self.double)
            found.stored |= {f"{block.prefix}{layer}.{kind}": part for kind, part in bnb.pack(quantized).items()}
            found.errors[layer] = float((quantized.dequantize() - tensor).square().sum() / tensor.square().sum().clamp(min=1e-30))
        return found

    def assemble(self, source: OpenedModel, parts: Sequence[Path], out: Path, largest: float) -> None:
        apart = left_alone(source)
        skipped = ["lm_head", *apart] if apart else []
        self.finish(source, parts, out, bnb.quantization_config(self.kind, self.double, skipped=skipped), largest)
