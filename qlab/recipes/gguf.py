"""Recipes of GGUF files: llama.cpp's mixes of K-quants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from qlab.formats.folder import finish_folder
from qlab.formats.gguf import encoding
from qlab.formats.gguf import file as gguf
from qlab.formats.gguf.mix import fallback_note
from qlab.methods.awq import judged_rows, output_error
from qlab.models.opening import OpenedModel
from qlab.recipes.recipe import Walked
from qlab.support.stages import stage
from qlab.walk.block import Block
from qlab.walk.statistics import Statistics
from qlab.walk.walk import Calibration, Quantized

DECODERS = 4  # threads that decode what was encoded, to measure its error
Search = Literal["settled", "importance", "plain"]


@dataclass(frozen=True)
class GGUF(Walked):
    """A GGUF file in one of llama.cpp's mixes.

    `search`: "plain", each block's grid for the least error of its weights; "importance", weighted by the calibration text's
    activations, llama.cpp's imatrix; "settled", that and then the codes gone over again with all of H (qlab.methods.settle).
    """

    mix: str = "q4_k_m"
    search: Search = "settled"

    @property
    def name(self) -> str:
        return self.mix if self.search == "settled" or not self.data_matters else f"{self.mix}-{self.search}"

    @property
    def format(self) -> str:
        return "gguf"

    @property
    def data_matters(self) -> bool:
        return self.mix not in ("f16", "q8_0")

    @property
    def data(self) -> bool:  # type: ignore[override]
        return self.search != "plain" and self.data_matters

    @property
    def settles(self) -> bool:
        """Whether codes are gone over again (qlab.methods.settle)."""
        return self.search == "settled" and self.data_matters

    def encoder(self, seen: Statistics | None) -> encoding.Encoder:
        """What makes the blocks of a layer whose inputs were `seen`: qlab's own methods."""
        return partial(encoding.encode_rows, hessian=seen.trusted if seen and self.settles else None)

    def check(self, source: OpenedModel) -> None:
        gguf.check_model(source.folder, source.text_config, written(source))

    def remarks(self, source: OpenedModel) -> dict[str, str]:
        found = gguf.remarks(source.folder, source.text_config)
        if source.layout.towers:
            found["images"] = (
                "the file holds the language model alone; llama.cpp reads images with a second file, which qlab does not write"
            )
        for name, shape in source.layout.shapes.items():  # blocks have theirs from the walk
            elsewhere = source.layout.inside(name) or source.layout.beside(name)
            for target in () if elsewhere else encoding.gguf_names(name, source.text_config):
                if note := fallback_note(target, shape, self.mix, source.text_config):
                    found[name.removesuffix(".weight")] = note
        return found

    def quantize_block(self, source: OpenedModel, block: Block, calibration: Calibration | None) -> Quantized:
        found, gathered = Quantized({}), dict[str, list[Tensor]]()  # the experts' matrices become one tensor
        with ThreadPoolExecutor(DECODERS) as decoders:  # gguf-py decodes on the CPU, while the next layers are encoded
            for part in block.parts():
                statistics = calibration.of(part) if calibration else {}
                decoded = [
                    pending for names in tensors_of(part, block)
                    for pending in self._encode(source, part, block.within(part), names, statistics, found, gathered, decoders)
                ]  # fmt: skip
                with stage("error"):
                    for layer, approximation, original, hessian in decoded:
                        found.errors[layer] = output_error(approximation.result().to(block.device), original, hessian)
        found.stored |= {key: coded[0] if len(coded) == 1 else torch.stack(coded) for key, coded in gathered.items()}
        return found

    def _encode(
        self, source: OpenedModel, part: Block, within: str, names: list[str], statistics: dict[str, Statistics], found: Quantized,
        gathered: dict[str, list[Tensor]], decoders: ThreadPoolExecutor,
    ) -> Iterator[tuple[str, Future[Tensor], Tensor, Tensor]]:  # fmt: skip
        """Encode tensors of one input; a layer, what its bytes stand for, its weights and H, where the error is to be measured."""
        tensors, seen = part.module.state_dict(), statistics.get(names[0].removesuffix(".weight"))
        together = {part.prefix + name: tensors[name] for name in names}
        weights = seen.mean_square if seen else None
        with stage("encode"):
            stored = encoding.encode_tensors(together, self.mix, source.text_config, weights, self.encoder(seen))
        entries = iter(stored.items())
        for name, tensor in together.items():
            shapes = encoding.shapes_of(name, tensor.shape, source.text_config)
            coded = dict(islice(entries, len(shapes)))
            layer = within + name.removeprefix(part.prefix).removesuffix(".weight")
            notes = [
                fallback_note(key.partition(":")[2], shape, self.mix, source.text_config)
                for key, shape in zip(coded, shapes.values(), strict=True)
            ]
            found.notes[layer] = next((note for note in notes if note), "")
            for key, each in coded.items():
                gathered.setdefault(key, []).append(each)
            if seen and len(coded) == 1:  # in another order of rows at most: some of them tell
                (key, each), rows = next(iter(coded.items())), judged_rows(len(tensor))
                (inside,) = encoding.parts_of(name, tensor, source.text_config)
                some = {key: each[rows].cpu()}
                yield layer, decoders.submit(encoding.decode, some), inside.tensor[rows].clone(), seen.hessian
            elif seen:
                held = {key: each.cpu() for key, each in coded.items()}
                yield layer, decoders.submit(encoding.decode_plain, held, name, source.text_config), tensor, seen.hessian

    def keep(self, source: OpenedModel, name: str, tensor: Tensor) -> dict[str, Tensor]:
        if source.layout.beside(name):
            return {}
        return encoding.encode_tensor(name, tensor, self.mix, source.text_config, encoder=self.encoder(None))

    def dtype_note(self, source: OpenedModel, largest: float) -> str:
        """None: llama.cpp computes in FP32 whatever the file holds."""
        return ""

    def assemble(self, source: OpenedModel, parts: Sequence[Path], out: Path, largest: float) -> None:
        file = out / f"model-{self.mix}.gguf"
        gguf.assemble(parts, source.folder, source.text_config, written(source), self.mix, file)
        finish_folder(source.folder, source.config, [], out, None)  # Python tools read the original's tokenizer


def written(source: OpenedModel) -> list[str]:
    """The tensors of a model that are in the file: its language model's."""
    return [name for name in source.layout.shapes if not source.layout.beside(name)]


def tensors_of(part: Block, block: Block) -> list[list[str]]:
    """The tensors of a part, those of layers that read one input together; what lies in the experts of `block` is theirs."""
    grouped = [[f"{layer}.weight" for layer in group.layers] for group in part.groups]
    others = set(part.layers)
    lists = () if part.place else tuple(f"{path}." for path in block.experts)
    return grouped + [
        [name] for name in part.module.state_dict() if name.removesuffix(".weight") not in others and not name.startswith(lists)
    ]
