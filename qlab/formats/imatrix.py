"""Importance matrices in llama.cpp's files: how much each input channel of each layer was used, read, written and merged.

For every tensor of a GGUF model, by its name there: the sum of squared inputs of each channel, and how many tokens these are of; of a
tensor with several experts, for each of them. The file is a GGUF file itself (tools/imatrix/imatrix.cpp of llama.cpp): `NAME.in_sum2`
float32 [matrices, in] and `NAME.counts` float32 [matrices, 1]. The older form, .dat, has the mean times the number of chunks in place of
sums (common/imatrix-loader.cpp).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from qlab.formats.gguf.header import MAGIC, Header, read_header
from qlab.support.disk.scratch import Scratch
from qlab.support.errors import UserError
from qlab.support.reading import check_regular

SUMS, COUNTS = ".in_sum2", ".counts"
USUAL_CHUNK = 512  # tokens of a chunk, which the older form does not say; llama.cpp takes its usual context for it
LONGEST_NAME, MOST_ENTRIES, LARGEST = 4096, 1 << 20, 1 << 28  # of a .dat file: beyond them it is damaged, or another thing


@dataclass(frozen=True)
class Entry:
    """Of one tensor: `sums` of squares float32 [matrices, in] over `counts` tokens float32 [matrices]."""

    sums: Tensor
    counts: Tensor

    @property
    def means(self) -> Tensor:
        """The mean square of each channel, float32 [matrices, in]; 1 for an expert without tokens, as llama.cpp has it."""
        return torch.where(self.counts[:, None] > 0, self.sums / self.counts[:, None].clamp(min=1), 1.0)


@dataclass(frozen=True)
class Imatrix:
    """`entries` by GGUF's names of tensors; what they were measured on: names of texts, and how many chunks of how many tokens."""

    entries: Mapping[str, Entry]
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_size: int = USUAL_CHUNK


class ImatrixFile:
    """A file of importance as a recipe holds it: its `path`, and the beginning of its contents' SHA-256, by which alone files are told
    apart. A manifest has its name and hash, no path of this machine (`str`)."""

    def __init__(self, path: Path) -> None:
        """The file at `path`, as it is now.

        Raises:
            UserError: there is none.
        """
        check_regular(path, most=None)
        self.path, self.sha256 = path, hashlib.sha256(path.read_bytes()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImatrixFile) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __str__(self) -> str:
        return f"{self.path.name} {self.sha256}"


def read_imatrix(path: Path) -> Imatrix:
    """An importance matrix in either form.

    Raises:
        UserError: it is none, damaged, or holds sums that are negative or not finite.
    """
    check_regular(path, most=None)
    with path.open("rb") as stream:
        is_gguf = stream.read(len(MAGIC)) == MAGIC
    found = read_gguf(path) if is_gguf else read_dat(path)
    if not found.entries:
        raise UserError(f"{path.name} holds no importance: expected a file of llama.cpp's llama-imatrix or of 'qlab imatrix'")
    for name, entry in found.entries.items():
        for values in (entry.sums, entry.counts):
            if not bool((values >= 0).all() & values.isfinite().all()):
                raise UserError(f"{name} in {path.name} holds negative, NaN or infinite sums: measure the importance anew")
    return found


def read_gguf(path: Path) -> Imatrix:
    """An importance matrix in the GGUF form; raises as read_imatrix does."""
    header = read_header(path, arrays=True)
    if (kind := header.settings.get("general.type")) != gguf.GGUFType.IMATRIX:
        raise UserError(f"{path.name} is a GGUF file of type {kind or 'model'}: expected an importance matrix, as llama-imatrix writes it")
    entries = {}
    for name in header.tensors:
        if not name.endswith(SUMS):
            continue
        sums, counts = (floats_of(path, header, name.removesuffix(SUMS) + end) for end in (SUMS, COUNTS))
        if counts.numel() == 0 or sums.numel() % counts.numel():
            raise UserError(f"{name} in {path.name} has {sums.numel()} sums for {counts.numel()} counts: expected as many for each")
        entries[name.removesuffix(SUMS)] = Entry(sums.view(counts.numel(), -1), counts)
    stated = [header.settings.get(key) for key in (gguf.Keys.IMatrix.CHUNK_COUNT, gguf.Keys.IMatrix.CHUNK_SIZE)]
    chunks, size = (value if isinstance(value, int) else 0 for value in stated)
    datasets = tuple(map(str, header.arrays.get(gguf.Keys.IMatrix.DATASETS, ())))
    return Imatrix(entries, datasets, chunks, size or USUAL_CHUNK)


def floats_of(path: Path, header: Header, name: str) -> Tensor:
    """A tensor of the file, flat float32; raises as read_imatrix does."""
    if (tensor := header.tensors.get(name)) is None or tensor.kind != "F32":
        raise UserError(f"{path.name} lacks {name} as float32: measure the importance anew")
    return torch.from_numpy(np.fromfile(path, np.float32, tensor.bytes // 4, offset=tensor.start))


def read_dat(path: Path) -> Imatrix:
    """An importance matrix in the older form; raises as read_imatrix does."""
    content, at = path.read_bytes(), 0

    def take(size: int, most: int, least: int = 0) -> bytes:
        nonlocal at
        if not least <= size <= most or at + size > len(content):
            raise UserError(f"{path.name} is neither a GGUF file nor a whole .dat file of llama.cpp's importance: measure it anew")
        at += size
        return content[at - size : at]

    def number() -> int:
        found: int = struct.unpack("<i", take(4, 4))[0]
        return found

    def text() -> str:
        return take(number(), LONGEST_NAME).decode(errors="replace")

    entries = {}
    for _ in range(min(max(0, number()), MOST_ENTRIES)):
        name, chunks = text(), number()
        values = torch.frombuffer(bytearray(take(4 * number(), LARGEST, 4)), dtype=torch.float32) * USUAL_CHUNK
        entries[name] = Entry(values[None], torch.tensor([float(max(1, chunks) * USUAL_CHUNK)]))
    chunks = number() if at < len(content) else 0
    return Imatrix(entries, (text(),) if at < len(content) else (), chunks)


def write_imatrix(path: Path, imatrix: Imatrix) -> None:
    """Write the GGUF form, entries in the order of their names, as llama-imatrix does; the file is there whole or not at all."""
    with Scratch(path.parent) as place:
        write_gguf(place / path.name, imatrix)
        (place / path.name).rename(path)


def write_gguf(path: Path, imatrix: Imatrix) -> None:
    writer = ImatrixWriter(path, "imatrix")
    writer.add_type(gguf.GGUFType.IMATRIX)
    writer.add_array(gguf.Keys.IMatrix.DATASETS, imatrix.datasets or ("unknown",))  # llama.cpp refuses a file without
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, imatrix.chunks)
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, imatrix.chunk_size)
    for name, entry in sorted(imatrix.entries.items()):
        writer.add_tensor(name + SUMS, entry.sums.numpy())
        writer.add_tensor(name + COUNTS, entry.counts[:, None].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class ImatrixWriter(gguf.GGUFWriter):
    """gguf-py's writer, for a file that is no model and has no architecture."""

    def add_architecture(self) -> None:
        """Nothing."""


def merged(parts: Sequence[tuple[str, Imatrix]]) -> Imatrix:
    """Importance of several files together, each token with the same weight. `parts` have the names of their files.

    Raises:
        UserError: one has another model's shapes.
    """
    entries: dict[str, Entry] = {}
    for file, part in parts:
        for name, entry in part.entries.items():
            known = entries.get(name)
            if known is None:
                entries[name] = entry
                continue
            sums, counts = entry.sums, entry.counts
            matrices = max(len(known.counts), len(counts))  # the older form counts experts together
            if known.sums.numel() != sums.numel() or not {len(known.counts), len(counts)} <= {1, matrices}:
                raise UserError(
                    f"{name} in {file} has {sums.numel()} values and {len(counts)} counts: expected {known.sums.numel()} and "
                    f"{len(known.counts)}, as in the files before it"
                )
            whole = [(each.sums.view(matrices, -1), each.counts.expand(matrices)) for each in (known, entry)]
            entries[name] = Entry(whole[0][0] + whole[1][0], whole[0][1] + whole[1][1])
    datasets = tuple(dict.fromkeys(text for _, part in parts for text in part.datasets))
    return Imatrix(entries, datasets, sum(part.chunks for _, part in parts), parts[0][1].chunk_size)


@cache
def importance_of(files: tuple[ImatrixFile, ...]) -> Mapping[str, Tensor]:
    """The means of all `files` together, float32 [matrices, in] by GGUF's names.

    Raises:
        UserError: a file is no such file, is not what it was when the recipe was made, or is of another model than the others.
    """
    for file in files:
        if ImatrixFile(file.path) != file:
            raise UserError(f"{file.path.name} was changed since the command began: start it again")
    whole = merged([(file.path.name, read_imatrix(file.path)) for file in files])
    return {name: entry.means for name, entry in whole.entries.items()}
