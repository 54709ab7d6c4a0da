"""Recipes of FP8: weights rounded to nearest, activations by the runtime as it goes; stored as compressed-tensors.

No recipe scales channels for it first (SmoothQuant, AWQ): that needs calibration text, and wins little, since a float is rounded by a
share of itself (tests/methods/test_fp8.py shows it beside INT8).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from qlab.formats.compressed_tensors import writing as compressed
from qlab.methods.fp8 import Block as Shared
from qlab.methods.fp8 import fp8
from qlab.models.opening import OpenedModel
from qlab.recipes.fitting import Layers, check_layers, layers_of, left_alone, stored_layers, summary, unquantized
from qlab.recipes.recipe import Fitted, Walked
from qlab.recipes.without_data import quantize_each
from qlab.walk.block import Block
from qlab.walk.walk import Calibration, Quantized

PATTERN = re.compile(r"rtn-fp8(-b128)?")
SIDE = 128  # of DeepSeek's blocks, the only ones that runtimes have kernels for


@dataclass(frozen=True)
class FP8(Walked):
    """E4M3 both ways, without calibration. Weights have a scale a row and activations one a token (FP8_DYNAMIC of llm-compressor and vLLM);
    with `blocks`, weights one a block of 128 x 128 and activations one for each 128 channels of a token (FP8_BLOCK, DeepSeek's kind)."""

    blocks: bool = False
    data = False

    @property
    def name(self) -> str:
        return f"rtn-fp8{f'-b{SIDE}' if self.blocks else ''}"

    @property
    def format(self) -> str:
        return "compressed-tensors"

    @property
    def block(self) -> Shared | None:
        """What shares a scale, where it is not a row."""
        return (SIDE, SIDE) if self.blocks else None

    def check(self, source: OpenedModel) -> None:
        """Raise the UserError of a model none of whose layers is made of blocks."""
        check_layers(self.name, layers_of(source.layout), -1, self.unfit)

    def fitted(self, source: OpenedModel) -> Fitted:
        left = summary(self.left(layers_of(source.layout)))
        return Fitted(self, self.name, tuple(f"{self.name}: {sentence}" for sentence in left))

    def unfit(self, outputs: int, inputs: int) -> str:
        """Why runtimes cannot read a layer of this shape in blocks; empty where they can. vLLM wants whole blocks of layers that it joins,
        and compressed-tensors, when it decompresses, takes all blocks for equally large."""
        whole = not self.blocks or (outputs % SIDE == 0 and inputs % SIDE == 0)
        return "" if whole else f"{outputs} outputs and {inputs} inputs are not both multiples of {SIDE}, the side of a block"

    def left(self, layers: Layers) -> dict[str, str]:
        """The layers that stay in half precision, and why."""
        return unquantized(layers, -1, self.unfit)

    def quantize_block(self, source: OpenedModel, block: Block, calibration: Calibration | None) -> Quantized:
        def encode(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            quantized = fp8(weight, self.block)
            return compressed.pack_floats(quantized), quantized.dequantize()

        return quantize_each(self, source, block, encode, self.left({name: block.layer(name).weight.shape for name in block.layers}))

    def assemble(self, source: OpenedModel, parts: Sequence[Path], out: Path, largest: float) -> None:
        kept, _ = stored_layers(source.layout, parts)
        weights, inputs = compressed.floats(self.block)
        self.finish(source, parts, out, compressed.quantization_config(weights, inputs, kept, left_alone(source)), largest)


def parse_fp8(name: str) -> FP8 | None:
    """The recipe of a short name, rtn-fp8 or rtn-fp8-b128, if it is one of this family."""
    match = PATTERN.fullmatch(name)
    return FP8(bool(match[1])) if match else None
