"""What a walk has finished: the state that an interrupted walk goes on from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

V = TypeVar("V")


@dataclass
class Journal:
    """What a walk has finished, written anew after each block; a rerun believes nothing else."""

    path: Path
    blocks: int = 0
    kept: bool = False
    batch: int = 0  # windows computed at a time, for good: sums depend on it in their last bits
    seconds: dict[str, float] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: dict[str, dict[str, str]] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)  # absolute value that a recipe was shown: of weights, of activations

    @classmethod
    def open(cls, path: Path) -> Journal:
        """The journal at `path`, or a new one."""
        return cls(path, **json.loads(path.read_text())) if path.exists() else cls(path)

    @classmethod
    def merged(cls, journals: Sequence[Journal], prefixes: Sequence[str]) -> Journal:
        """What several devices found, in the order of the blocks, whose names begin with `prefixes`; it lies in no file.

        `seconds` are those of the device that took longest.
        """

        def place(name: str) -> int:
            return next((index for index, prefix in enumerate(prefixes) if name.startswith(prefix)), -1)

        def together(parts: Iterable[dict[str, V]]) -> dict[str, V]:
            whole = {name: value for part in parts for name, value in part.items()}
            return {name: whole[name] for name in sorted(whole, key=place)}

        found = cls(Path())
        for recipe in sorted({name for journal in journals for name in journal.largest}):
            found.seconds[recipe] = max(journal.seconds.get(recipe, 0.0) for journal in journals)
            found.largest[recipe] = max(journal.largest.get(recipe, 0.0) for journal in journals)
            found.errors[recipe] = together(journal.errors.get(recipe, {}) for journal in journals)
            found.notes[recipe] = together(journal.notes.get(recipe, {}) for journal in journals)
        return found

    def text(self) -> str:
        """All that it holds, as `save` writes it."""
        return json.dumps({name: value for name, value in vars(self).items() if name != "path"})

    def save(self, text: str | None = None) -> None:
        """Write it, or the `text` that it had at an earlier time; the file is whole at every moment."""
        new = self.path.with_suffix(".new")
        new.write_text(self.text() if text is None else text)
        new.replace(self.path)

    def details(self, recipe: str) -> dict[str, Any]:
        """What was found out about a recipe's layers, for its manifest."""
        return {"errors": self.errors.get(recipe, {}), "notes": self.notes.get(recipe, {})}

    def saw(self, recipe: str, largest: float) -> None:
        """Note a largest absolute value; the largest of all stays."""
        self.largest[recipe] = max(self.largest.get(recipe, 0.0), largest)

    def add(self, recipe: str, prefix: str, errors: dict[str, float], notes: dict[str, str], seconds: float) -> None:
        """What a recipe found out about the layers of the block `prefix`, and the time that it took."""
        self.seconds[recipe] = self.seconds.get(recipe, 0) + seconds
        self.errors.setdefault(recipe, {}).update({prefix + name: error for name, error in errors.items()})
        self.notes.setdefault(recipe, {}).update({prefix + name: note for name, note in notes.items() if note})
