"""A GGUF file's header: its settings and what its tensors are, without their data and without the vocabulary.

gguf-py's reader makes an object of every token, which for a vocabulary of 128 k takes it ten seconds; a plan wants none of them.
The layout is llama.cpp's (docs/gguf.md of ggml), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from qlab.errors import UserError

MAGIC, VERSIONS = b"GGUF", (2, 3)
CODES = {
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.UINT16: "H", GGUFValueType.INT16: "h", GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i", GGUFValueType.FLOAT32: "f", GGUFValueType.BOOL: "?", GGUFValueType.UINT64: "Q", GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}  # fmt: skip
Setting = int | float | bool | str


@dataclass(frozen=True)
class Tensor:
    """One tensor as the header tells it: its `kind`, such as Q4_K, and its `bytes` in the file."""

    kind: str
    bytes: int


@dataclass(frozen=True)
class Header:
    """`settings` that are one number or string each (arrays, the vocabulary among them, are left out), and the tensors by name."""

    settings: dict[str, Setting]
    tensors: dict[str, Tensor]


def read_header(file: Path) -> Header:
    """The header of a GGUF file.

    Raises:
        UserError: it is none, of a version that nobody writes any more, or ends within its header.
        OSError: it cannot be read.
    """
    if file.stat().st_size < 24:
        raise UserError(f"{file.name} is no GGUF file: it is only {file.stat().st_size} bytes long")
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            return _Cursor(content).header(file.name)
        except (struct.error, ValueError, KeyError) as error:
            raise UserError(f"{file.name} is no whole GGUF file: its header breaks off or holds what llama.cpp does not know") from error


class _Cursor:
    """A place in the file, which moves on with what is read."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.at = content, 0

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.content, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def text(self) -> str:
        length = self.number("Q")
        if self.at + length > len(self.content):
            raise ValueError("a string that is longer than the file")
        self.at += length
        return str(self.content[self.at - length : self.at], "utf-8")

    def header(self, name: str) -> Header:
        if self.content[:4] != MAGIC:
            raise UserError(f"{name} is no GGUF file: it does not begin with {MAGIC.decode()}")
        self.at = 4
        if (version := self.number("I")) not in VERSIONS:
            raise UserError(f"{name} is GGUF of version {version}: expected {VERSIONS[0]} or {VERSIONS[1]}, little-endian")
        tensors, settings = self.number("Q"), self.number("Q")
        found = ((self.text(), self.setting(GGUFValueType(self.number("I")))) for _ in range(settings))
        known = {key: value for key, value in found if value is not None}
        return Header(known, dict(self.tensor() for _ in range(tensors)))

    def setting(self, kind: GGUFValueType) -> Setting | None:
        """The value of a setting; of an array nothing, but the cursor stands behind it."""
        if kind == GGUFValueType.STRING:
            return self.text()
        if kind != GGUFValueType.ARRAY:
            return self.number(CODES[kind])
        inner, count = GGUFValueType(self.number("I")), self.number("Q")
        if inner in CODES:
            self.at += count * struct.calcsize(f"<{CODES[inner]}")
        elif inner == GGUFValueType.STRING:
            length = struct.Struct("<Q").unpack_from
            for _ in range(count):
                self.at += 8 + length(self.content, self.at)[0]
        else:
            for _ in range(count):
                self.setting(inner)
        return None

    def tensor(self) -> tuple[str, Tensor]:
        name = self.text()
        shape = [self.number("Q") for _ in range(self.number("I"))]
        kind, _ = GGMLQuantizationType(self.number("I")), self.number("Q")
        block, size = GGML_QUANT_SIZES[kind]
        return name, Tensor(kind.name, prod(shape) // block * size)
