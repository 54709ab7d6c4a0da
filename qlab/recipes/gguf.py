"""Recipes of GGUF files: llama.cpp's mixes of K-quants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import isclose
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from qlab.formats.folder import finish_folder
from qlab.formats.gguf import encoding
from qlab.formats.gguf import file as gguf
from qlab.formats.gguf.architectures import WRAPPED_UNLIKE
from qlab.formats.gguf.metadata import settings_of, unlike
from qlab.formats.gguf.mix import Mix, check_types, fallback_note, has_type
from qlab.formats.imatrix import ImatrixFile, importance_of
from qlab.methods.awq import judged_rows, output_error
from qlab.models.layout import made_of_one
from qlab.models.opening import OpenedModel
from qlab.recipes.recipe import Walked
from qlab.support.errors import UserError
from qlab.support.stages import stage
from qlab.walk.block import Block
from qlab.walk.statistics import Statistics
from qlab.walk.walk import Calibration, Quantized

PLAIN = ("F16", "F32", "Q8_0")  # types that know no importance
OF_LOGITS = ("logit_scale", "final_logit_softcapping")  # settings of a file by which logits are scaled or bent
DECODERS = 4  # threads that decode what was encoded, to measure its error
Search = Literal["settled", "importance", "plain"]


@dataclass(frozen=True)
class GGUF(Walked):
    """A GGUF file in one of llama.cpp's mixes.

    `search`: "plain", each block's grid for the least error of its weights; "importance", weighted by the calibration text's
    activations, llama.cpp's imatrix; "settled", that and then the codes gone over again with all of H (qlab.methods.settle).
    `tensor_types`, `output_type`, `embedding_type`: what is not to be as the mix has it (qlab.formats.gguf.mix.Mix). `imatrix`: files
    whose importance is taken in place of the calibration text's. `budget`: the bits a weight that types were chosen for, as they stand in
    the name.
    """

    mix: str = "q4_k_m"
    search: Search = "settled"
    tensor_types: tuple[tuple[str, str], ...] = ()
    output_type: str = ""
    embedding_type: str = ""
    imatrix: tuple[ImatrixFile, ...] = ()
    budget: str = ""

    @property
    def name(self) -> str:
        return self.mix + self.options + ("" if self.search == "settled" or not self.data_matters else f"-{self.search}")

    @property
    def options(self) -> str:
        """What the name says of options."""
        types = f"-mixed{self.budget}" if self.budget else "-types" if self.types.asked else ""
        return types + ("-imatrix" if self.imatrix else "")

    @property
    def types(self) -> Mix:
        """Which tensor gets which type."""
        return Mix(self.mix, self.tensor_types, self.output_type, self.embedding_type, self.search != "plain")

    @property
    def format(self) -> str:
        return "gguf"

    @property
    def data_matters(self) -> bool:
        return self.mix not in ("f16", "q8_0") or any(kind not in PLAIN for kind in self.types.asked)

    @property
    def data(self) -> bool:  # type: ignore[override]
        return self.settles or (self.search == "importance" and self.data_matters and not self.imatrix)

    @property
    def settles(self) -> bool:
        """Whether codes are gone over again (qlab.methods.settle)."""
        return self.search == "settled" and self.data_matters

    def encoder(self, seen: Statistics | None) -> encoding.Encoder:
        """What makes the blocks of a layer whose inputs were `seen`: qlab's own methods."""
        return partial(encoding.encode_rows, hessian=seen.trusted if seen and self.settles else None)

    def check(self, source: OpenedModel) -> None:
        if why := WRAPPED_UNLIKE.get(kind := source.config["model_type"]):
            raise UserError(unlike(kind, why))
        gguf.check_model(source.folder, source.text_config, written(source))
        if why := logits_apart(source):
            raise UserError(unlike(kind, why))
        if self.types.asked or self.imatrix:
            stored = stored_shapes(source)
            check_types(self.types, stored, source.text_config)
            check_importance(self.imatrix, stored)

    def remarks(self, source: OpenedModel) -> dict[str, str]:
        found = gguf.remarks(source.folder, source.text_config)
        if source.layout.towers:
            found["images"] = (
                "the file holds the language model alone; llama.cpp reads images with a second file, which qlab does not write"
            )
        for name, shape in source.layout.shapes.items():  # blocks have theirs from the walk
            elsewhere = source.layout.inside(name) or source.layout.beside(name)
            for target in () if elsewhere else encoding.gguf_names(name, source.text_config):
                if note := fallback_note(target, shape, self.types, source.text_config):
                    found[name.removesuffix(".weight")] = note
        if self.imatrix:
            blocks = [name for name, shape in stored_shapes(source).items() if name.startswith("blk.") and has_type(name, shape)]
            if lacking := [name for name in blocks if name not in importance_of(self.imatrix)]:
                found["importance"] = (
                    f"the files know {len(blocks) - len(lacking)} of the blocks' {len(blocks)} tensors; the others, {lacking[0]} "
                    "among them, are searched without"
                )
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
        for key in list(gathered):  # one after the other: never are all of them there twice
            coded = gathered.pop(key)
            found.stored[key] = coded[0] if len(coded) == 1 else torch.cat(coded)
        return found

    def _encode(
        self, source: OpenedModel, part: Block, within: str, names: list[str], statistics: dict[str, Statistics], found: Quantized,
        gathered: dict[str, list[Tensor]], decoders: ThreadPoolExecutor,
    ) -> Iterator[tuple[str, Future[Tensor], Tensor, Tensor]]:  # fmt: skip
        """Encode tensors of one input; a layer, what its bytes stand for, its weights and H, where the error is to be measured."""
        tensors, seen = part.module.state_dict(), statistics.get(names[0].removesuffix(".weight"))
        together = {part.prefix + name: tensors[name] for name in names}
        with stage("encode"):
            if self.imatrix:  # whose values may differ where the inputs are the same
                stored = dict[str, Tensor]()
                for name, tensor in together.items():
                    stored |= encoding.encode_tensor(
                        name, tensor, self.types, source.text_config, self._known(source, name, tensor, part.place), self.encoder(seen)
                    )
            else:
                weights = seen.mean_square if seen else None
                stored = encoding.encode_tensors(together, self.types, source.text_config, weights, self.encoder(seen))
        entries = iter(stored.items())
        for name, tensor in together.items():
            shapes = encoding.shapes_of(name, tensor.shape, source.text_config)
            coded = dict(islice(entries, len(shapes)))
            layer = within + name.removeprefix(part.prefix).removesuffix(".weight")
            notes = [
                fallback_note(key.partition(":")[2], shape, self.types, source.text_config)
                for key, shape in zip(coded, shapes.values(), strict=True)
            ]
            found.notes[layer] = next((note for note in notes if note), "")
            for key, each in coded.items():
                gathered.setdefault(key, []).append(each.unsqueeze(0) if part.place else each)
            if seen and len(coded) == 1:  # in another order of rows at most: some of them tell
                (key, each), rows = next(iter(coded.items())), judged_rows(len(tensor))
                (inside,) = encoding.parts_of(name, tensor, source.text_config)
                some = {key: each[rows].cpu()}
                yield layer, decoders.submit(encoding.decode, some), inside.tensor[rows].clone(), seen.hessian
            elif seen:
                held = {key: each.cpu() for key, each in coded.items()}
                yield layer, decoders.submit(encoding.decode_plain, held, name, source.text_config), tensor, seen.hessian

    def encodes(self, source: OpenedModel, name: str) -> bool:
        """Embedding and head, unless all are floats."""
        return (self.mix != "f16" or bool(self.types.asked)) and not source.layout.beside(name)

    def keep(self, source: OpenedModel, name: str, tensor: Tensor) -> dict[str, Tensor]:
        if source.layout.beside(name):
            return {}
        known = self._known(source, name, tensor, None)
        return encoding.encode_tensor(name, tensor, self.types, source.text_config, known, self.encoder(None))

    def _known(self, source: OpenedModel, name: str, tensor: Tensor, place: tuple[str, int] | None) -> Tensor | None:
        """What the importance files say of the channels of a tensor `name`, [in]; of an expert by its `place`."""
        if not self.imatrix or tensor.ndim < 2:
            return None
        known = importance_of(self.imatrix)
        targets = (target for target in encoding.reading_inputs(name, tensor.shape, source.text_config) if target in known)
        if (target := next(targets, None)) is None:
            return None
        matrices = known[target].view(-1, tensor.shape[-1])
        return matrices[place[1]] if place and len(matrices) > 1 else matrices.mean(0)

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


def logits_apart(source: OpenedModel) -> str:
    """Why llama.cpp's logits are others than those of a model around a language model: its class may leave out what the language model's
    own does with them. Empty where they are the same."""
    said = [key.partition(".")[2] for key in settings_of(source.text_config)]
    if not source.layout.towers or not any(name in said for name in OF_LOGITS):
        return ""
    text = source.configuration.get_text_config()
    own, whole = made_of_one(text, source.name), made_of_one(source.configuration, source.name)
    if isclose(own, whole, rel_tol=1e-6):
        return ""
    return f"a logit of 1 becomes {own:g} there, as in transformers' {text.model_type}, and {whole:g} in its class of this model"


def stored_shapes(source: OpenedModel) -> dict[str, tuple[int, ...]]:
    """The tensors of the file by GGUF's names; the shape of experts is that of all of them."""
    found: dict[str, tuple[int, ...]] = {}
    experts = Counter[str]()
    for name in written(source):
        for target, shape in encoding.shapes_of(name, source.layout.shapes[name], source.text_config).items():
            found[target] = shape
            experts[target] += name in source.layout.pieces
    return {name: (experts[name], *shape) if experts[name] else shape for name, shape in found.items()}


def check_importance(files: tuple[ImatrixFile, ...], stored: Mapping[str, Sequence[int]]) -> None:
    """See that importance files are of the model whose file has tensors `stored`.

    Raises:
        UserError: they are of another model.
    """
    if not files:
        return
    names, shared = ", ".join(file.path.name for file in files), 0
    for name, means in importance_of(files).items():
        if (shape := stored.get(name)) is None:
            continue
        shared += 1
        columns, experts = shape[-1], shape[0] if len(shape) > 2 else 1
        if means.numel() % columns or (experts > 1 and means.numel() // columns not in (1, experts)):
            raise UserError(
                f"{name} in {names} has {means.numel()} values: expected {experts * columns}, of {columns} input channels"
                f"{f' of {experts} experts' if experts > 1 else ''}. The importance is of another model: measure it with 'qlab imatrix'"
            )
    if not shared:
        raise UserError(f"{names} knows none of this model's tensors: the importance is of another model. Measure it with 'qlab imatrix'")


def tensors_of(part: Block, block: Block) -> list[list[str]]:
    """The tensors of a part, those of layers that read one input together; what lies in the experts of `block` is theirs."""
    grouped = [[f"{layer}.weight" for layer in group.layers] for group in part.groups]
    others = set(part.layers)
    lists = () if part.place else tuple(f"{path}." for path in block.experts)
    return grouped + [
        [name] for name in part.module.state_dict() if name.removesuffix(".weight") not in others and not name.startswith(lists)
    ]
