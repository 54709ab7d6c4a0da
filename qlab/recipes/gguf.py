"""Recipes of GGUF files: llama.cpp's mixes of K-quants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from qlab.block import Block
from qlab.formats import gguf
from qlab.formats.folder import finish_folder
from qlab.formats.gguf_read import decode
from qlab.methods.awq import output_error
from qlab.model import Source
from qlab.recipes.recipe import Shapes, Walked
from qlab.walk import Calibration, Quantized


@dataclass(frozen=True)
class GGUF(Walked):
    """A GGUF file in one of llama.cpp's mixes; `importance` weighs the search by the calibration text's activations."""

    mix: str = "q4_k_m"
    importance: bool = True

    @property
    def name(self) -> str:
        return f"{self.mix}{'' if self.importance or not self.data_matters else '-plain'}"

    @property
    def format(self) -> str:
        return "gguf"

    @property
    def data_matters(self) -> bool:
        return self.mix not in ("f16", "q8_0")

    @property
    def data(self) -> bool:  # type: ignore[override]
        return self.importance and self.data_matters

    @property
    def encoder(self) -> gguf.Encoder:
        """What makes the blocks: qlab's own methods."""
        return gguf.encode_rows

    def check(self, source: Source, shapes: Shapes) -> None:
        gguf.check_model(source.path, source.config, shapes)

    def quantize_block(self, source: Source, block: Block, calibration: Calibration | None) -> Quantized:
        found = Quantized({})
        for name, tensor in block.module.state_dict().items():
            layer = name.removesuffix(".weight")
            seen = calibration.statistics.get(layer) if calibration else None
            weights = seen.mean_square.cpu() if seen else None
            stored = gguf.encode_tensor(block.prefix + name, tensor.cpu(), self.mix, source.config, weights, self.encoder)
            found.stored |= stored
            if seen and layer in block.layers:
                original = gguf.rotary_order(block.prefix + name, tensor.cpu(), source.config)
                found.errors[layer] = output_error(decode(stored), original, seen.hessian.cpu())
        return found

    def keep(self, source: Source, name: str, tensor: Tensor) -> dict[str, Tensor]:
        return gguf.encode_tensor(name, tensor, self.mix, source.config, encoder=self.encoder)

    def assemble(self, source: Source, parts: Sequence[Path], out: Path) -> None:
        gguf.assemble(parts, source.path, source.config, self.mix, out / f"model-{self.mix}.gguf")
        finish_folder(source, [], out, None)  # llama.cpp reads the tokenizer from the file; Python tools keep the original's
