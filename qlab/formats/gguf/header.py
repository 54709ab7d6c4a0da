"""A GGUF file's header: its settings and what its tensors are, without their data, and without the vocabulary unless asked for.

gguf-py's reader makes several objects of every token, which takes it long where there are many; a plan wants none of them.
(transformers has a reader like this one for itself: it knows fewer types, and believes what a damaged file says.)
The layout is llama.cpp's (docs/gguf.md of ggml), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, TypeVar

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from qlab.support.errors import UserError
from qlab.support.reading import LAYERS, check_regular

MAGIC, VERSIONS = b"GGUF", (2, 3)
ALIGNMENT, DIMENSIONS = 32, 4  # of the data, where the file says none; and of a tensor at most
TENSORS, SETTINGS, ENTRIES = 1 << 20, 1 << 16, 1 << 22  # at most, ten times what the largest models have: nobody waits for a damaged count
CODES = {
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.UINT16: "H", GGUFValueType.INT16: "h", GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i", GGUFValueType.FLOAT32: "f", GGUFValueType.BOOL: "?", GGUFValueType.UINT64: "Q", GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}  # fmt: skip
Setting = int | float | bool | str
T = TypeVar("T")


@dataclass(frozen=True)
class Tensor:
    """One tensor as the header tells it: its `kind`, such as Q4_K, its `bytes`, shape (rows first) and place."""

    kind: str
    bytes: int
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Header:
    """`settings` that are one number or string each, `arrays` (unless asked for, only those that may have a number for each block: the
    vocabulary is among the others), tensors by name."""

    settings: dict[str, Setting]
    tensors: dict[str, Tensor]
    arrays: dict[str, list[Any]]


def read_header(file: Path, arrays: bool = False) -> Header:
    """The header of a GGUF file, all of whose tensors are seen to be there.

    Raises:
        UserError: it is none, of a version that nobody writes any more, damaged, or cut off.
        OSError: it cannot be read.
    """
    check_regular(file, most=None)
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Cursor(content, arrays).header()
    except Damaged as error:
        reason = str(error)
    except (struct.error, ValueError, KeyError):  # the end of the file, an empty one, a number that stands for nothing, no UTF-8
        reason = "its header breaks off, or holds what llama.cpp does not know"
    raise UserError(f"{file.name} is no whole GGUF file: {reason}. Fetch it again, or convert the model anew (qlab quantize)")


class Damaged(ValueError):
    """What is wrong with a header, in words."""


class _Cursor:
    """A place in the file, which moves on with what is read, and never beyond the end."""

    def __init__(self, content: mmap.mmap, arrays: bool) -> None:
        self.content, self.at, self.arrays = content, 0, arrays

    def skip(self, size: int) -> int:
        """Move on by `size` bytes; where they began."""
        if size > len(self.content) - self.at:
            raise Damaged("it breaks off within its header")
        self.at += size
        return self.at - size

    def number(self, code: str) -> Any:
        return struct.unpack_from(f"<{code}", self.content, self.skip(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        size = self.number("Q")
        start = self.skip(size)
        return str(self.content[start : start + size], "utf-8")

    def header(self) -> Header:
        if self.content[: self.skip(len(MAGIC)) + len(MAGIC)] != MAGIC:
            raise Damaged(f"it does not begin with {MAGIC.decode()}")
        if (version := self.number("I")) not in VERSIONS:
            raise Damaged(f"its version is {version}, expected {VERSIONS[0]} or {VERSIONS[1]}, little-endian")
        tensors, count = self.number("Q"), self.number("Q")
        if tensors > TENSORS or count > SETTINGS:
            raise Damaged(f"it speaks of {tensors:,} tensors and {count:,} settings")
        settings: dict[str, Setting | list[Any] | None] = {}
        for _ in range(count):
            once(settings, self.text(), self.setting(GGUFValueType(self.number("I"))))
        found: dict[str, Tensor] = {}
        end = 0
        for _ in range(tensors):
            name, tensor = self.tensor()
            once(found, name, tensor)
            end = max(end, tensor.start + tensor.bytes)
        alignment = settings.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):  # llama.cpp wants a power of two
            raise Damaged(f"its alignment is {alignment!r}")
        data = -(-self.at // alignment) * alignment
        if end and (missing := data + end - len(self.content)) > 0:
            raise Damaged(f"{missing:,} bytes of its tensors are missing")
        return Header(
            {name: value for name, value in settings.items() if value is not None and not isinstance(value, list)},
            {name: replace(tensor, start=data + tensor.start) for name, tensor in found.items()},
            {name: value for name, value in settings.items() if isinstance(value, list)},
        )

    def setting(self, kind: GGUFValueType) -> Setting | list[Any] | None:
        """The value of a setting; of an array nothing unless arrays are asked for, but the cursor stands behind it."""
        if kind == GGUFValueType.STRING:
            return self.text()
        if kind != GGUFValueType.ARRAY:
            return self.number(CODES[kind])
        inner, count = GGUFValueType(self.number("I")), self.number("Q")
        if count > ENTRIES:
            raise Damaged(f"it speaks of an array of {count:,} entries, beyond what it can hold")
        if inner == GGUFValueType.STRING:
            if self.arrays:
                return [self.text() for _ in range(count)]
            for _ in range(count):
                self.skip(self.number("Q"))
            return None
        start = self.skip(count * struct.calcsize(f"<{CODES[inner]}"))  # no arrays of arrays: llama.cpp knows none
        wanted = self.arrays or count <= LAYERS  # a number for each block is no vocabulary
        return list(struct.unpack_from(f"<{count}{CODES[inner]}", self.content, start)) if wanted else None

    def tensor(self) -> tuple[str, Tensor]:
        """A tensor by its name; its place counted from where the data begin."""
        name, dimensions = self.text(), self.number("I")
        if dimensions > DIMENSIONS:
            raise Damaged(f"{name[:80]} has {dimensions} dimensions")
        shape = [self.number("Q") for _ in range(dimensions)]
        if not all(shape):
            raise Damaged(f"{name[:80]} has the shape {shape}")
        kind, offset = GGMLQuantizationType(self.number("I")), self.number("Q")
        block, size = GGML_QUANT_SIZES[kind]
        if shape and shape[0] % block:
            raise Damaged(f"rows of {name[:80]} have {shape[0]} weights, {kind.name} wants them by {block}")
        return name, Tensor(kind.name, prod(shape) // block * size, tuple(reversed(shape)), offset)


def once(known: dict[str, T], name: str, value: T) -> None:
    """Put a value by a name that is new."""
    if name in known:
        raise Damaged(f"it has {name[:80]} twice")
    known[name] = value
