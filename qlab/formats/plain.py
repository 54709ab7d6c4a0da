"""A plain tensor and the stored tensors that it is decoded from: what every format says of its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from qlab.methods.grid import GroupedIntegers
from qlab.support.errors import UserError

AGAIN = "download or copy the checkpoint again"
HALVES = ("F16", "BF16", "F32")  # dtypes of scales
Parts = dict[str, Tensor]
Copied = Callable[[Tensor], Tensor]
"""A tensor in the pages of a file → one that holds the same, in memory of its own."""
Decode = Callable[[Parts], Tensor]
"""Stored tensors by their roles → the plain tensor. A function at the top of a module, or a partial of one, so that it can be pickled."""


class Stored(Protocol):
    """The tensors of a checkpoint as its files hold them: shapes and dtypes (safetensors' names) at once, values when asked for."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    def read(self, name: str, first: int = 0, count: int | None = None, copied: Copied = Tensor.clone) -> Tensor:
        """A stored tensor, or `count` of its rows from `first` on, in memory of its own: `copied` from the file's pages."""


@dataclass(frozen=True)
class Plain:
    """One plain tensor: its shape, the stored tensors it comes from by their roles, and how they become it.

    `by_rows` says that rows of the stored tensors decode to the same rows of the plain one; `quantized`, that decoding is more than
    reading; `integers` reads codes, scales and zero points where the format is one of grouped integers.
    """

    shape: tuple[int, ...]
    parts: dict[str, str]
    decode: Decode
    by_rows: bool = False
    quantized: bool = True
    integers: Callable[[Parts], GroupedIntegers] | None = None


def layers(stored: Stored, role: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """The layers that have a stored matrix of this role, and its shape.

    Raises:
        UserError: a tensor of this role is no matrix, or empty.
    """
    for name, shape in stored.shapes.items():
        layer, _, last = name.rpartition(".")
        if last == role:
            if len(shape) != 2 or not all(shape):
                raise UserError(f"{name} has the shape {list(shape)[:9]}: expected a matrix; {AGAIN}")
            yield layer, (shape[0], shape[1])


def check_parts(stored: Stored, wanted: dict[str, tuple[tuple[int, ...], Collection[str]]]) -> None:
    """See that the tensors which a weight is decoded from are there, each in its shape and one of its dtypes.

    Raises:
        UserError: one is not.
    """
    for name, (shape, dtypes) in wanted.items():
        if name not in stored.shapes:
            raise UserError(f"{name} is missing, without which its layer cannot be decoded: {AGAIN}")
        if stored.shapes[name] != shape or stored.dtypes[name] not in dtypes:
            found = f"{stored.dtypes[name]} {list(stored.shapes[name])[:9]}"
            raise UserError(f"{name} is {found}, the rest of its layer asks for {' or '.join(dtypes)} {list(shape)}: {AGAIN}")


def groups_of(stored: Stored, name: str, across: int) -> int:
    """The number of groups in the scales `name`, whose first dimension they are, which cut `across` inputs into equal parts.

    Raises:
        UserError: they do not.
    """
    groups = (stored.shapes.get(name) or (0,))[0]
    if not groups or across % groups:
        raise UserError(f"{name} has scales for {groups} groups, which do not divide {across} inputs: {AGAIN}")
    return groups


def as_stored(parts: dict[str, Tensor]) -> Tensor:
    """The decoder of a tensor that is stored plain."""
    (tensor,) = parts.values()
    return tensor


def plainly_stored(name: str, shape: tuple[int, ...]) -> Plain:
    """The entry of a tensor that is stored plain."""
    return Plain(shape, {"": name}, as_stored, by_rows=True, quantized=False)
