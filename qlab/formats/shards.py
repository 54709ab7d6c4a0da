"""From many small safetensors files to one checkpoint: model.safetensors, or numbered shards with an index.

Tensors go from file to file through a few buffers, so that a 70B checkpoint is assembled in megabytes of memory. A
safetensors file is the length of its header in eight little-endian bytes, the header (JSON, padded with spaces so that the
data begin at a multiple of eight) and the tensors' bytes; this writes what the safetensors library itself would write.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

from qlab.formats.half import half_precision
from qlab.support.errors import UserError

BUFFER = 1 << 20
COPIERS = 4  # threads that copy tensors: one reads and writes less in a second than a disk takes
LENGTH = struct.Struct("<Q")
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
METADATA = {"format": "pt"}  # without it transformers refuses the file
# The library lays wide types before narrow ones, so that every tensor is aligned, and among the equally wide keeps this order.
DTYPES = ["U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"]


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its name, type and shape, and where its bytes lie; with `half`, those of another type that become it.

    `called`: its name in the checkpoint that is made, where that is another.
    """

    name: str
    dtype: str
    shape: list[int]
    file: Path
    start: int
    size: int
    half: torch.dtype | None = None
    called: str = ""

    @property
    def out(self) -> str:
        """Its name in the checkpoint that is made."""
        return self.called or self.name


@dataclass(frozen=True)
class Halves:
    """The names of tensors that are brought to half precision, and to which."""

    names: Container[str]
    dtype: torch.dtype

    def of(self, tensor: Stored) -> Stored:
        """The tensor as it will be stored."""
        if tensor.name not in self.names or tensor.dtype not in FLOATS:
            return tensor
        name = next(name for name, dtype in FLOATS.items() if dtype == self.dtype)
        return replace(tensor, dtype=name, size=2 * math.prod(tensor.shape), half=self.dtype)


def assemble(
    parts: Sequence[Path], out: Path, shard_bytes: int = 4 << 30, halves: Halves | None = None, called: Callable[[str], str] = str
) -> None:
    """Write the tensors of the files `parts`, in their order, to the folder `out`, in shards of at most `shard_bytes` of data.

    Those that `halves` names are brought to half precision on the way, one in memory at a time. `called` says under which name each is
    written.

    One shard is model.safetensors; several are model-00001-of-0000N.safetensors, with model.safetensors.index.json. A tensor
    larger than a shard has one to itself.

    Raises:
        UserError: no tensors, a name that occurs twice, a damaged part, or a value beyond the range of half precision.
    """
    found = [halves.of(tensor) if halves else tensor for part in parts for tensor in contents(part)]
    tensors = [replace(tensor, called=called(tensor.name)) for tensor in found]
    if not tensors:
        raise UserError(f"there is nothing to assemble: {len(parts)} files hold no tensor")
    first: dict[str, Path] = {}
    for tensor in tensors:
        if tensor.out in first:
            raise UserError(f"{tensor.out} is in both {first[tensor.out].name} and {tensor.file.name}: each tensor may be stored once")
        first[tensor.out] = tensor.file
    shards = divide(tensors, shard_bytes)
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = ["model.safetensors"]
    for name, shard in zip(names, shards):
        write_shard(shard, out / name)
    if len(shards) > 1:
        places = {tensor.out: name for name, shard in zip(names, shards) for tensor in shard}
        index = {"metadata": {"total_size": sum(tensor.size for tensor in tensors)}, "weight_map": dict(sorted(places.items()))}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def contents(file: Path) -> list[Stored]:
    """The tensors of a safetensors file, in the order of their bytes.

    Raises:
        UserError: the file is not what its header says, or holds a type that torch does not.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = LENGTH.unpack(stream.read(LENGTH.size))
            header: dict[str, Any] = json.loads(stream.read(min(length, size)))
        header.pop("__metadata__", None)
        data = LENGTH.size + length
        spans = {name: entry["data_offsets"] for name, entry in header.items()}
        tensors = [
            Stored(name, header[name]["dtype"], header[name]["shape"], file, data + begin, end - begin)
            for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1])
        ]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file.name} is no safetensors file ({error}): write it again") from error
    if unknown := sorted({tensor.dtype for tensor in tensors} - set(DTYPES)):
        raise UserError(f"{file.name} holds tensors of type {unknown[0]}: expected one of {', '.join(DTYPES)}")
    if data + max((end for _, end in spans.values()), default=0) != size:
        raise UserError(f"{file.name} is {size} bytes long, not what its header says: it was cut off; write it again")
    return tensors


def divide(tensors: Sequence[Stored], shard_bytes: int) -> list[list[Stored]]:
    """Fill shards one after the other, in order."""
    shards: list[list[Stored]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.size
    return shards


def write_shard(tensors: Sequence[Stored], file: Path) -> None:
    """Write one safetensors file of these tensors."""
    ordered = sorted(tensors, key=lambda tensor: (DTYPES.index(tensor.dtype), tensor.out))
    header: dict[str, Any] = {"__metadata__": METADATA}
    end = 0
    for tensor in ordered:
        header[tensor.out] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [end, end + tensor.size]}
        end += tensor.size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    data = LENGTH.size + len(text)
    starts = {tensor.out: data + header[tensor.out]["data_offsets"][0] for tensor in ordered}
    with file.open("wb") as target:
        target.write(LENGTH.pack(len(text)) + text)
        target.truncate(data + end)
        for tensor in ordered:
            if tensor.half:  # one in memory at a time
                target.seek(starts[tensor.out])
                target.write(halved(tensor, tensor.half))
    as_they_are = [tensor for tensor in ordered if not tensor.half]
    with ThreadPoolExecutor(COPIERS) as pool:
        for _ in pool.map(lambda tensor: place(tensor, file, starts[tensor.out]), as_they_are):
            pass


def place(tensor: Stored, file: Path, start: int) -> None:
    """Copy a tensor's bytes to where they belong in `file`."""
    with tensor.file.open("rb") as source, file.open("r+b") as target:
        source.seek(tensor.start)
        target.seek(start)
        copy(source, target, tensor.size)


def halved(tensor: Stored, dtype: torch.dtype) -> memoryview:
    """The bytes of a tensor in half precision; raises UserError for a value beyond its range."""
    with safe_open(tensor.file, "pt") as opened:
        half = half_precision(tensor.name, opened.get_tensor(tensor.name), dtype)
    return half.flatten().view(torch.uint8).numpy().data


def copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    """Copy `size` bytes, a buffer at a time."""
    while size:
        piece = source.read(min(BUFFER, size))
        if not piece:
            raise UserError(f"{Path(source.name).name} ended {size} bytes too early: was it changed meanwhile? Write it again")
        target.write(piece)
        size -= len(piece)
