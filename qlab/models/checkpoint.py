"""A checkpoint on disk, read a tensor at a time: what a walk needs of a model that is larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from qlab.support.errors import UserError
from qlab.support.finite import all_finite

ROWS = 4096  # rows of a large matrix handled at a time


class Checkpoint:
    """The safetensors files of a model folder: names and shapes at once, tensors when asked for."""

    def __init__(self, files: list[Path]) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._files: dict[str, Path] = {}
        for file in files:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dictionary
                    part = opened.get_slice(name)
                    self.shapes[name], self.dtypes[name] = tuple(part.get_shape()), part.get_dtype()
                    self._files[name] = file

    @classmethod
    def on_paper(cls, shapes: dict[str, tuple[int, ...]]) -> Checkpoint:
        """Names and shapes without files, as of FP16 weights: enough to predict by, nothing to read."""
        found = cls([])
        found.shapes, found.dtypes = shapes, dict.fromkeys(shapes, "F16")
        return found

    def read(self, name: str) -> Tensor:
        """One tensor in its stored dtype, in memory of its own.

        Raises:
            UserError: the file cannot be read, or floating-point weights are not finite.
        """
        return self._checked(name, lambda opened: opened.get_tensor(name))

    def rows(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """A matrix in pieces of ROWS rows, each with the number of its first row."""
        for first in range(0, self.shapes[name][0], ROWS):
            yield first, self._checked(name, lambda opened, first=first: opened.get_slice(name)[first : first + ROWS])

    def _checked(self, name: str, get: Any) -> Tensor:
        # Opened for each tensor anew: an open file keeps every page that was read in the process's memory.
        try:
            with safe_open(self._files[name], "pt") as opened:
                tensor = get(opened).clone()
        except (SafetensorError, OSError) as error:
            raise UserError(f"cannot read {name} from {self._files[name].name}: {error}") from error
        if tensor.is_floating_point() and not all_finite(tensor):
            raise UserError(f"{name} holds NaN or infinity: this checkpoint is damaged, download or convert it again")
        return tensor

    def bytes_of(self, name: str) -> int:
        """Stored size of one tensor."""
        return prod(self.shapes[name]) * {"F32": 4, "F64": 8, "I64": 8, "I32": 4, "U8": 1, "I8": 1, "BOOL": 1}.get(self.dtypes[name], 2)
