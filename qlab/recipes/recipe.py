"""What a recipe is: a method and its options, frozen, with a short name; and what recipes that the walk feeds have in common."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from qlab.formats.folder import finish_folder
from qlab.formats.imatrix import ImatrixFile
from qlab.models.opening import OpenedModel
from qlab.support.disk.scratch import Scratch
from qlab.walk.span import FP16_LARGEST, overflows
from qlab.walk.state.journal import Journal
from qlab.walk.walk import Method, Walk, encoded_parts

Details = dict[str, Any]
"""What quantizing found out, for the manifest: errors by layer, remarks, and under `data` whether the calibration text was used.

Under `cost`, which does not go into the manifest: seconds and peak bytes, where another process than the one that was asked did the work.
"""


class Recipe(Protocol):
    """What artifacts are made of; a frozen dataclass, so that equal options are equal recipes."""

    @property
    def name(self) -> str: ...

    def versions(self) -> dict[str, str]:
        """Of what the bytes depend on in another environment than qlab's: none but for libraries that have one of their own."""
        return {}

    def check(self, source: OpenedModel) -> None:
        """Raise the UserError of a model that this recipe cannot quantize or store, as far as its layout and configuration tell it."""

    def quantize(self, source: OpenedModel, windows: Tensor, out: Path, device: str) -> Details:
        """Write the quantized checkpoint of `source` to the folder `out`, computed on `device`; calibration int64 [windows, length]."""


class WalkedRecipe(Recipe, Method, Protocol):
    """A recipe that the walk can feed."""

    @property
    def format(self) -> str:
        """What the artifact is to a runtime: awq, gptq, bitsandbytes or gguf."""

    def fitted(self, source: OpenedModel) -> Fitted:
        """The recipe nearest to this one that can store the model, with a remark on each difference."""

    def remarks(self, source: OpenedModel) -> dict[str, str]:
        """What a user of this model in this format has to know: subject → sentence, for the screen and the manifest's notes."""

    def dtype(self, source: OpenedModel, largest: float) -> torch.dtype:
        """What the artifact is to be run in."""

    def dtype_note(self, source: OpenedModel, largest: float) -> str:
        """A sentence on it where it is not FP16."""


@dataclass(frozen=True)
class Fitted:
    """The recipe that is used on a model, the name of the one that was asked for, and a sentence on each difference between them."""

    recipe: WalkedRecipe
    asked: str
    remarks: tuple[str, ...] = ()


class Walked:
    """What recipes that the walk feeds have in common."""

    data = True
    sequential = False
    targets = False

    def versions(self) -> dict[str, str]:
        """None: qlab's own methods depend on qlab's environment alone."""
        return {}

    def check(self, source: OpenedModel) -> None:
        """Nothing here: most layouts take every model."""

    def fitted(self: WalkedRecipe, source: OpenedModel) -> Fitted:
        """This recipe itself: most layouts take every model."""
        return Fitted(self, self.name)

    def remarks(self, source: OpenedModel) -> dict[str, str]:
        """None: most layouts hold every function."""
        return {}

    def encodes(self, source: OpenedModel, name: str) -> bool:
        """Nothing outside the blocks."""
        return False

    def keep(self, source: OpenedModel, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """As it is: whether FP16 or BF16 holds it and what the model makes of it, only the whole walk tells (`finish`)."""
        return source.checkpoint.as_stored(name, tensor)

    def dtype(self: WalkedRecipe, source: OpenedModel, largest: float) -> torch.dtype:
        """What the tensors that are not quantized are stored in, and the model is to be run in: BF16 where FP16 may overflow.

        Without calibration nothing tells whether the activations of a BF16 model fit FP16: such a model stays in BF16.
        """
        return torch.bfloat16 if overflows(largest) or (not self.data and source.trained_in == torch.bfloat16) else torch.float16

    def dtype_note(self: WalkedRecipe, source: OpenedModel, largest: float) -> str:
        """Why the artifact is BF16; empty where it is not."""
        if self.dtype(source, largest) == torch.float16:
            return ""
        if not self.data and source.trained_in == torch.bfloat16:
            return "stored as BF16, as the original is: without calibration nothing tells whether its activations fit FP16"
        return (
            f"stored as BF16 and marked so in config.json, since FP16, which ends at {FP16_LARGEST:.0f}, may overflow: "
            f"weights and activations of up to {largest:.3g} were seen. Do not run it with --dtype float16"
        )

    def finish(
        self: WalkedRecipe, source: OpenedModel, parts: Sequence[Path], out: Path, quantization: dict[str, Any], largest: float
    ) -> None:
        """A checkpoint of the safetensors family: what is not quantized in half precision, beside it config.json and tokenizer."""
        dtype = self.dtype(source, largest)
        kept, called = {*source.layout.shapes, *source.checkpoint.parts}, source.checkpoint.stored_name
        finish_folder(source.folder, source.config, parts, out, quantization, kept, dtype, called)

    def quantize(self: WalkedRecipe, source: OpenedModel, windows: Tensor, out: Path, device: str) -> Details:
        """Walk for this recipe alone."""
        with Scratch(out.parent) as work:
            journal = Walk(source, [self], windows, work, device=device).run()
            self.assemble(source, encoded_parts(work, self.name), out, journal.largest[self.name])
        return details(self, source, journal)


def details(recipe: WalkedRecipe, source: OpenedModel, journal: Journal) -> Details:
    """What the walk found out for this recipe, with the recipe's remarks among the notes."""
    found = journal.details(recipe.name)
    note = recipe.dtype_note(source, journal.largest[recipe.name])
    return found | {"data": recipe.data, "notes": recipe.remarks(source) | ({"dtype": note} if note else {}) | found["notes"]}


def describe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, as a manifest has it when it is read again: JSON's lists for tuples, files by their names and hashes.

    Raises:
        TypeError: an option that is neither of these nor what JSON holds.
    """
    told = json.dumps({"recipe": type(recipe).__name__, **asdict(recipe)}, default=file_told)  # type: ignore[call-overload]
    found: dict[str, Any] = json.loads(told)
    return found


def file_told(option: object) -> str:
    """A file among a recipe's options by its name and hash.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(option, ImatrixFile):
        raise TypeError(f"a recipe's option is a {type(option).__name__}, which no manifest can hold: {option!r}")
    return str(option)
