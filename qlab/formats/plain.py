"""A plain tensor and the stored tensors that it is decoded from: what every format says of its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Decode = Callable[[dict[str, Tensor]], Tensor]
"""Stored tensors by their roles → the plain tensor. A function at the top of a module, or a partial of one, so that it can be pickled."""


class Stored(Protocol):
    """The tensors of a checkpoint as its files hold them: shapes and dtypes (safetensors' names) at once, values when asked for."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    def read(self, name: str, first: int = 0, count: int | None = None) -> Tensor:
        """A stored tensor, or `count` of its rows from `first` on, in memory of its own."""


@dataclass(frozen=True)
class Plain:
    """One plain tensor: its shape, the stored tensors it comes from by their roles, and how they become it.

    `by_rows` says that rows of the stored tensors decode to the same rows of the plain one; `quantized`, that decoding is more than
    reading.
    """

    shape: tuple[int, ...]
    parts: dict[str, str]
    decode: Decode
    by_rows: bool = False
    quantized: bool = True


def layers(stored: Stored, role: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The layers that have a stored tensor of this role, and its shape."""
    for name, shape in stored.shapes.items():
        layer, _, last = name.rpartition(".")
        if last == role:
            yield layer, shape


def as_stored(parts: dict[str, Tensor]) -> Tensor:
    """The decoder of a tensor that is stored plain."""
    (tensor,) = parts.values()
    return tensor


def plainly_stored(name: str, shape: tuple[int, ...]) -> Plain:
    """The entry of a tensor that is stored plain."""
    return Plain(shape, {"": name}, as_stored, by_rows=True, quantized=False)
