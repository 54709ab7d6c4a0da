"""What a recipe is: a method and its options, frozen, with a short name; and what recipes that the walk feeds have in common."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from qlab.formats.folder import half_precision
from qlab.models.opening import OpenedModel
from qlab.walk.walk import Journal, Method, Walk

Details = dict[str, Any]
"""What quantizing found out, for the manifest: errors by layer, remarks."""


class Recipe(Protocol):
    """What artifacts are made of; a frozen dataclass, so that equal options are equal recipes."""

    @property
    def name(self) -> str: ...

    def quantize(self, source: OpenedModel, windows: Tensor, out: Path) -> Details:
        """Write the quantized checkpoint of `source` to the folder `out`; calibration int64 [windows, length]."""


class WalkedRecipe(Recipe, Method, Protocol):
    """A recipe that the walk can feed."""

    @property
    def format(self) -> str:
        """What the artifact is to a runtime: awq, gptq, bitsandbytes or gguf."""

    def check(self, source: OpenedModel) -> None:
        """Raise the UserError of a model that this recipe cannot store, as far as its layout and configuration tell it."""

    def fitted(self, source: OpenedModel) -> Fitted:
        """The recipe nearest to this one that can store the model, with a remark on each difference."""

    def remarks(self, source: OpenedModel) -> dict[str, str]:
        """What a user of this model in this format has to know: subject → sentence, for the screen and the manifest's notes."""


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

    def check(self, source: OpenedModel) -> None:
        """Nothing here: most layouts take every model."""

    def fitted(self: WalkedRecipe, source: OpenedModel) -> Fitted:
        """This recipe itself: most layouts take every model."""
        return Fitted(self, self.name)

    def remarks(self, source: OpenedModel) -> dict[str, str]:
        """None: most layouts hold every function."""
        return {}

    def keep(self, source: OpenedModel, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """In half precision, as checkpoints of the safetensors family store what is not quantized."""
        return {name: half_precision(name, tensor)}

    def quantize(self: WalkedRecipe, source: OpenedModel, windows: Tensor, out: Path) -> Details:
        """Walk for this recipe alone."""
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".walk-") as work:
            walk = Walk(source, [self], windows, Path(work))
            journal = walk.run()
            self.assemble(source, walk.parts(self), out)
        return details(self, source, journal)


def details(recipe: WalkedRecipe, source: OpenedModel, journal: Journal) -> Details:
    """What the walk found out for this recipe, with the recipe's remarks among the notes."""
    found = journal.details(recipe.name)
    return found | {"notes": recipe.remarks(source) | found["notes"]}


def describe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, for manifests."""
    return {"recipe": type(recipe).__name__, **asdict(recipe)}  # type: ignore[call-overload]
