"""Importance, measured by the walk: what llama.cpp's imatrix is, for its tools and for qlab's recipes of GGUF files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from qlab.formats.gguf import file as gguf
from qlab.formats.gguf.encoding import reading_inputs
from qlab.formats.imatrix import COUNTS, SUMS, Entry, Imatrix
from qlab.models.opening import OpenedModel
from qlab.recipes.gguf import written
from qlab.support.disk.scratch import Scratch
from qlab.walk.block import Block
from qlab.walk.walk import Calibration, Quantized, Walk, encoded_parts


@dataclass(frozen=True)
class Importance:
    """What the walk is fed to in place of a recipe: it quantizes nothing."""

    name = "imatrix"
    data, sequential, targets = True, False, False

    def quantize_block(self, source: OpenedModel, block: Block, calibration: Calibration | None) -> Quantized:
        """Sums of squares and counts of the block's tensors; of experts one below another."""
        assert calibration is not None
        found = dict[str, list[tuple[Tensor, int]]]()
        for part in block.parts():
            for layer, seen in calibration.of(part).items():
                name, shape = f"{part.prefix}{layer}.weight", part.layer(layer).weight.shape
                for target in reading_inputs(name, shape, source.text_config):
                    found.setdefault(target, []).append((seen.hessian.diagonal().clone().cpu(), seen.tokens))
        stored = dict[str, Tensor]()
        for target, matrices in found.items():
            stored[target + SUMS] = torch.stack([sums for sums, _ in matrices])
            stored[target + COUNTS] = torch.tensor([float(tokens) for _, tokens in matrices])
        return Quantized(stored)

    def encodes(self, source: OpenedModel, name: str) -> bool:
        """Nothing."""
        return False

    def keep(self, source: OpenedModel, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Nothing: no calibration reaches embedding and output."""
        return {}

    def assemble(self, source: OpenedModel, parts: Sequence[Path], out: Path, largest: float) -> None:
        """Nothing: `measure` reads the parts."""


def measure(source: OpenedModel, windows: Tensor, datasets: Sequence[str], work: Path, device: str) -> Imatrix:
    """The importance of a model's layers on calibration `windows` int64 [windows, length]. `work`: a folder for what outlives a block.

    Raises:
        UserError: a model that no GGUF file can hold: its tensors have no names there.
    """
    gguf.check_model(source.folder, source.text_config, written(source))
    recipe, entries = Importance(), dict[str, Entry]()
    with Scratch(work) as place:
        Walk(source, [recipe], windows, place, device=device).run()
        for part in encoded_parts(place, recipe.name):
            with safe_open(part, "pt") as opened:
                for key in opened.keys():  # noqa: SIM118 - not a dictionary
                    if (name := key.removesuffix(SUMS)) != key:
                        entries[name] = Entry(opened.get_tensor(key), opened.get_tensor(name + COUNTS))
    return Imatrix(entries, tuple(datasets), len(windows), windows.shape[1])
