"""A checkpoint on disk, read a tensor at a time: what a walk needs of a model that is larger than memory.

Whatever form the weights are stored in (safetensors in plain numbers, FP8, AWQ …, or GGUF), names, shapes and values are those of the
plain model: qlab.formats says what decodes to what, and this reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qlab.formats.gguf import reading
from qlab.formats.plain import Copied, Plain, Stored, plainly_stored
from qlab.formats.stored import describe, plain_tensors
from qlab.methods.grid import GroupedIntegers
from qlab.models.experts import Piece
from qlab.models.locating import opened, weight_files
from qlab.models.naming import Source
from qlab.support.errors import UserError
from qlab.support.finite import all_finite

ROWS = 4096  # rows of a large matrix handled at a time
BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
DECODED = 4  # bytes of a number that was stored quantized
PLAIN = {"F64": "FP64", "F32": "FP32", "F16": "FP16", "BF16": "BF16"}
HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}


class SafetensorsFiles:
    """The tensors of safetensors files as they are stored, for qlab.formats.plain.Stored."""

    def __init__(self, files: list[Path]) -> None:
        """Read names, shapes and dtypes.

        Raises:
            UserError: a file cannot be read, or a tensor is in two.
        """
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._files: dict[str, Path] = {}
        for file in files:
            with opened(file) as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a dictionary
                    if name in self._files:
                        raise UserError(f"{name} is in both {self._files[name].name} and {file.name}: download or copy them again")
                    part = tensors.get_slice(name)
                    self.shapes[name], self.dtypes[name] = tuple(part.get_shape()), part.get_dtype()
                    self._files[name] = file

    def read(self, name: str, first: int = 0, count: int | None = None, copied: Copied = Tensor.clone) -> Tensor:
        """A stored tensor, or `count` of its rows from `first` on, in memory of its own.

        Raises:
            UserError: the file cannot be read.
        """
        # Opened for each tensor anew: an open file keeps every page that was read in the process's memory.
        with opened(self._files[name]) as tensors:
            return copied(tensors.get_tensor(name) if count is None else tensors.get_slice(name)[first : first + count])


class OnPaper:
    """Names and shapes without files, as of FP16 weights."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes, self.dtypes = shapes, dict.fromkeys(shapes, "F16")

    def read(self, name: str, first: int = 0, count: int | None = None, copied: Copied = Tensor.clone) -> Tensor:
        raise UserError(f"{name} is not there: the model has no weights, only a configuration")


class Checkpoint:
    """The plain tensors of a model: names and shapes at once, values when asked for. It can be pickled.

    Attributes:
        shapes: of the plain tensors, by their Hugging Face names.
        quantized: whether any tensor is stored quantized.
        description: how the weights are stored, for a manifest or a warning, such as "BF16" or "FP8 E4M3 in blocks of 128 x 128".
    """

    def __init__(self, stored: Stored, plain: dict[str, Plain], description: str) -> None:
        self.shapes = {name: entry.shape for name, entry in plain.items()}
        self.quantized = any(entry.quantized for entry in plain.values())
        self.description = description
        self._stored, self._plain = stored, plain
        self._pieces: dict[str, Piece] = {}
        self._renamed: dict[str, str] = {}
        self._joined: dict[str, dict[str, int]] = {}

    @classmethod
    def on_paper(cls, shapes: dict[str, tuple[int, ...]]) -> Checkpoint:
        """Names and shapes without files, as of FP16 weights: enough to predict by, nothing to read."""
        return cls(OnPaper(shapes), {name: plainly_stored(name, shape) for name, shape in shapes.items()}, "FP16")

    def called(self, sources: Mapping[str, Source], shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
        """The same tensors under other names: those that `sources` tells, of these `shapes`, each in its source's place."""
        by_source: dict[str, list[str]] = {}
        for name, source in sources.items():
            by_source.setdefault(source.stored, []).append(name)
        names = {own: name for name in self._plain for own in by_source.get(name, [name])}
        found = Checkpoint(self._stored, {own: self._plain[name] for own, name in names.items()}, self.description)
        for own, source in sources.items():
            if source.piece:
                found._pieces[own], found.shapes[own] = source.piece, shapes[own]
            else:
                found._renamed[own] = source.stored
        return found

    def joining(self, several: Mapping[str, Sequence[str]]) -> Checkpoint:
        """The same with some tensors for `several`, by the names of these: rows of the first, then of the next. Those that are stored
        quantized stay apart, and those whose rows are not alike."""
        found = copy(self)
        found._plain, found.shapes, found._joined = dict(self._plain), dict(self.shapes), dict(self._joined)
        for name, parts in several.items():
            entries = [self._plain[part] for part in parts]
            if any(entry.quantized for entry in entries) or len({entry.shape[1:] for entry in entries}) > 1:
                continue
            shape = (sum(entry.shape[0] for entry in entries), *entries[0].shape[1:])
            stored = {str(place): entry.parts[""] for place, entry in enumerate(entries)}
            found._plain[name], found.shapes[name] = Plain(shape, stored, in_rows, quantized=False), shape
            found._joined[name] = {part: entry.shape[0] for part, entry in zip(parts, entries)}
            for part in parts:
                del found._plain[part], found.shapes[part]
        return found

    def as_stored(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """A plain tensor `name`, or several where the files of this model hold several for it."""
        if name not in self._joined:
            return {name: tensor}
        return dict(zip(self._joined[name], tensor.split(list(self._joined[name].values()))))

    @property
    def parts(self) -> list[str]:
        """The names of tensors that `as_stored` gives in place of one."""
        return [part for parts in self._joined.values() for part in parts]

    def stored_name(self, name: str) -> str:
        """What the files of this model call a plain tensor, or anything that belongs to a layer, such as its `qweight`."""
        if name in self._renamed:
            return self._renamed[name]
        layer, _, end = name.rpartition(".")
        while self._renamed and layer:
            if known := self._renamed.get(f"{layer}.weight"):
                return f"{known.removesuffix('.weight')}.{end}"
            layer, _, more = layer.rpartition(".")
            end = f"{more}.{end}"
        return name

    def read_unseen(self, name: str, copied: Copied) -> Tensor:
        """One plain tensor as `read` gives it, where `copied` puts it, straight from its file where it is stored plain. Whether it is
        `finite`, the caller is to see: a GPU sees that sooner.

        Raises:
            UserError: the file cannot be read.
        """
        entry = self._plain[name]
        if entry.quantized or len(entry.parts) > 1 or name in self._pieces:
            return copied(self.read(name))
        return entry.decode({role: self._stored.read(part, copied=copied) for role, part in entry.parts.items()})

    def read(self, name: str) -> Tensor:
        """One plain tensor in memory of its own: in its stored dtype, or float32 where it is stored quantized.

        Raises:
            UserError: the file cannot be read, or weights are not finite.
        """
        entry = self._plain[name]
        if piece := self._pieces.get(name):
            return finite(name, self._piece(entry, piece))
        return finite(name, entry.decode({role: self._stored.read(part) for role, part in entry.parts.items()}))

    def quantized_names(self) -> list[str]:
        """The plain tensors that are stored quantized."""
        return [name for name, entry in self._plain.items() if entry.quantized]

    def input_scale(self, layer: str) -> Tensor | None:
        """The one scale that is stored for the inputs of a layer, float32 []; None where none is.

        Raises:
            UserError: the file cannot be read, or holds no such scale there.
        """
        name = self.stored_name(f"{layer}.input_scale")
        if name not in self._stored.shapes:
            return None
        found = self._stored.read(name).float().flatten()
        if found.numel() != 1 or not bool(found.isfinite().all() and (found > 0).all()):
            raise UserError(f"{name} is no scale: expected one number above zero; this checkpoint is damaged, download or convert it again")
        return found[0]

    def integers(self, name: str) -> GroupedIntegers | None:
        """The codes, scales and zero points of a weight; None where it is not stored as grouped integers.

        Raises:
            UserError: the file cannot be read.
        """
        entry = self._plain[name]
        if entry.integers is None or name in self._pieces:
            return None
        return entry.integers({role: self._stored.read(part) for role, part in entry.parts.items()})

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype in which `read` gives a plain tensor of real numbers, where that is half precision; else float32, which has room for
        what else there is (FP64 apart)."""
        entry = self._plain[name]
        stored = {self._stored.dtypes[part] for part in entry.parts.values()}
        return torch.float32 if entry.quantized or len(stored) != 1 else HALVES.get(stored.pop(), torch.float32)

    def _piece(self, entry: Plain, piece: Piece) -> Tensor:
        """A matrix of one expert, of which alone the file is read where its tensors can be read by rows."""
        if not entry.by_rows:
            found = piece.of(entry.decode({role: self._stored.read(part) for role, part in entry.parts.items()}))
        else:
            one = entry.decode({role: self._stored.read(part, piece.expert, 1) for role, part in entry.parts.items()})
            found = piece.of_expert(one[0])
        return found.clone(memory_format=torch.contiguous_format)

    def rows(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """A matrix in pieces of ROWS rows, each with the number of its first row.

        Raises:
            UserError: as `read`.
        """
        entry = self._plain[name]
        whole = None if entry.by_rows else self.read(name)
        for first in range(0, entry.shape[0], ROWS):
            if whole is not None:
                yield first, whole[first : first + ROWS].clone()
                continue
            parts = {role: self._stored.read(part, first, ROWS) for role, part in entry.parts.items()}
            yield first, finite(name, entry.decode(parts))

    def bytes_of(self, name: str) -> int:
        """Bytes of one plain tensor in memory, as `read` gives it."""
        entry = self._plain[name]
        dtypes = [self._stored.dtypes[part] for part in entry.parts.values()]
        return prod(self.shapes[name]) * (DECODED if entry.quantized else max(BYTES.get(dtype, 1) for dtype in dtypes))


def in_rows(parts: dict[str, Tensor]) -> Tensor:
    """The decoder of a tensor that is stored in several: the rows of one behind those of the other."""
    return torch.cat(list(parts.values()))


def finite(name: str, tensor: Tensor) -> Tensor:
    """A tensor of weights.

    Raises:
        UserError: it holds NaN or infinity.
    """
    unbounded = tensor.ndim == 0 and not tensor.isnan()  # a bound that is none, as Gemma 4's audio encoder may have
    if tensor.is_floating_point() and not unbounded and not all_finite(tensor):
        raise UserError(f"{name} holds NaN or infinity: this checkpoint is damaged, download or convert it again")
    return tensor


def open_gguf(path: Path, config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
    """The checkpoint in a GGUF file, or in a folder with one, of the model with this configuration and tensors of these `shapes`.

    Raises:
        UserError: it does not hold that model, or in a form that qlab does not read.
    """
    files = reading.GGUFFiles(path)
    return Checkpoint(files, reading.plain_gguf(files, config, shapes), reading.describe(files))


def open_checkpoint(path: Path, quantization: dict[str, Any] | None = None) -> Checkpoint:
    """The checkpoint in the safetensors files of a model folder.

    Args:
        path: the folder.
        quantization: `quantization_config` of the folder's config.json.

    Raises:
        UserError: no weights, a damaged file, or a format that qlab does not read.
    """
    stored = SafetensorsFiles(weight_files(path))
    plain = plain_tensors(quantization, stored)
    quantized = quantization is not None and any(entry.quantized for entry in plain.values())
    return Checkpoint(stored, plain, describe(quantization or {}) if quantized else plain_description(stored))


def plain_description(stored: Stored) -> str:
    """The dtypes of a plain checkpoint's weights, most numbers first, such as "BF16 and FP32"."""
    numbers: dict[str, int] = {}
    for name, dtype in stored.dtypes.items():
        if dtype in PLAIN:
            numbers[PLAIN[dtype]] = numbers.get(PLAIN[dtype], 0) + prod(stored.shapes[name])
    return " and ".join(sorted(numbers, key=lambda dtype: -numbers[dtype]))
