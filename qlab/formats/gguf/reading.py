"""A GGUF file, or one in numbered parts, as stored tensors that decode to those of the Hugging Face model it was made of.

gguf-py decodes (gguf.quants.dequantize), rows at a time from a memory map. Where each tensor of the model lies, and in which form, is asked
of what writes them (qlab.formats.gguf.encoding).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from qlab.formats.gguf.architectures import standard
from qlab.formats.gguf.block_bytes import from_bytes
from qlab.formats.gguf.configuration import model_config
from qlab.formats.gguf.encoding import EXPERT, form_of, shapes_of
from qlab.formats.gguf.forms import SAME
from qlab.formats.gguf.header import Header, Setting, read_header
from qlab.formats.plain import Copied, Plain
from qlab.support.errors import UserError

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
DERIVED = ("rope_freqs.weight",)  # what the configuration tells


def as_it_is(content: Tensor) -> Tensor:
    """What was read has memory of its own already."""
    return content


class GGUFFiles:
    """The tensors of a GGUF model under GGUF's names, for qlab.formats.plain.Stored; `dtypes` are GGML's types.

    `settings` and `arrays` are those of the first part, as llama.cpp reads them.
    """

    def __init__(self, path: Path, arrays: bool = False) -> None:
        """Read the headers of the file, or of the one model in the folder `path`.

        Raises:
            UserError: no GGUF file, more than one model, a part that is missing, or a damaged file.
        """
        self.files = gguf_files(path)
        headers = [read_header(file, arrays and file == self.files[0]) for file in self.files]
        self.settings: dict[str, Setting] = headers[0].settings
        self.arrays = headers[0].arrays
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        for file, header in zip(self.files, headers):
            check_part(file, header, len(self.files))
            for name, tensor in header.tensors.items():
                if name in self._places:
                    raise UserError(f"{name} is in both {self._places[name][0].name} and {file.name}: fetch the file again")
                self.shapes[name], self.dtypes[name] = tensor.shape, tensor.kind
                self._places[name] = file, tensor.start

    def read(self, name: str, first: int = 0, count: int | None = None, copied: Copied = as_it_is) -> Tensor:
        """A tensor or some of its rows, in memory of its own: floats in their dtype, others as uint8 [rows, bytes a row].

        Raises:
            UserError: the file cannot be read.
        """
        shape, kind = self.shapes[name], gguf.GGMLQuantizationType[self.dtypes[name]]
        size, weights = gguf.GGML_QUANT_SIZES[kind][1], gguf.GGML_QUANT_SIZES[kind][0]
        a_row = (shape[-1] if shape else 1) // weights * size
        if len(shape) > 1:
            below = int(np.prod(shape[1:-1], dtype=np.int64)) * a_row
            chosen = (min(shape[0] - first, shape[0] if count is None else count), *shape[1:-1])
        else:
            below, chosen = a_row, ()
        file, start = self._places[name]
        try:
            length = below * (chosen[0] if chosen else 1)
            content = torch.from_numpy(np.array(np.memmap(file, mode="r", offset=start + first * below, shape=(length,))))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {name} from {file.name}: {error}") from error
        dtype = FLOATS.get(kind.name)
        return copied(content.view(*chosen, a_row) if dtype is None else content.view(dtype).view(*chosen, *shape[-1:]))


def gguf_files(path: Path) -> list[Path]:
    """The parts of the model in a GGUF file or folder, in their order.

    Raises:
        UserError: none, several models, or a part that is missing.
    """
    found = [path] if path.suffix == ".gguf" else sorted(path.glob("*.gguf"))
    models = {(match[1], match[3]) if (match := PART.fullmatch(file.name)) else (file.name, "") for file in found}
    if not models:
        raise UserError(f"{path.name}/ holds no GGUF file")
    if len(models) > 1:
        raise UserError(
            f"{path.name}/ holds {len(models)} GGUF models, {found[0].name} and {found[-1].name} among them: give the path of one"
        )
    ((name, count),) = models
    if not count:
        return found
    parts = [found[0].parent / f"{name}-{number:05d}-of-{count}.gguf" for number in range(1, int(count) + 1)]
    if not parts:
        raise UserError(f"{found[0].name} is called a part of {int(count)}: give the file the name that it had")
    if missing := [part.name for part in parts if not part.is_file()]:
        raise UserError(f"{name} lacks {len(missing)} of its {len(parts)} parts: {missing[0]} is not there; fetch it, or join them")
    return parts


def check_part(file: Path, header: Header, parts: int) -> None:
    """Raise a UserError unless a file is one of as many parts as its header says."""
    if (said := header.settings.get("split.count", 1)) not in (0, parts):
        name = f"{file.name.removesuffix('.gguf')}-00001-of-{said:05d}.gguf" if isinstance(said, int) else "its name"
        raise UserError(f"{file.name} is one of {said} parts, which must keep their names, such as {name}, and lie together")


def plain_gguf(files: GGUFFiles, config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Plain]:
    """Every tensor of the model under its Hugging Face name; experts' matrices together, [experts, out, in], as the file has them.

    Args:
        config: its configuration, with what its class takes where that says nothing.
        shapes: of its tensors by their Hugging Face names, experts one by one.

    Raises:
        UserError: tensors that the architecture does not have, that are missing or of another shape, or of a type that gguf-py does not
            decode.
    """
    found: dict[str, Plain] = {}
    missing: list[str] = []
    place = files.files[0].name
    several = Counter(EXPERT.sub(".experts.", name) for name in shapes)
    for whole, name in {EXPERT.sub(".experts.", name): name for name in shapes}.items():
        together = (several[whole],) if whole != name else ()
        parts = {target: (*together, *shape) for target, shape in shapes_of(name, shapes[name], config).items()}
        if lacking := [target for target in parts if target not in files.shapes]:
            missing += lacking
            continue
        for target, shape in parts.items():
            if files.shapes[target] != shape:
                raise UserError(f"{target} in {place} is {list(files.shapes[target])}, its header asks for {list(shape)}: convert it anew")
            check_kind(target, files.dtypes[target])
        kinds = [files.dtypes[target] for target in parts]
        plain = (*together, *shapes[name])
        found[whole] = Plain(
            plain, {target: target for target in parts}, partial(decode_form, kinds=kinds, name=name, config=config),
            by_rows=form_of(name, config) is SAME and len(plain) > 1, quantized=any(kind not in FLOATS for kind in kinds),
        )  # fmt: skip
    if missing:
        raise UserError(f"{place} is not complete: it lacks {len(missing)} tensors, {missing[0]} among them; fetch it again")
    used = {target for plain in found.values() for target in plain.parts}
    if strange := [name for name in files.shapes if name not in used and name not in DERIVED]:
        raise UserError(f"{strange[0]} in {place} has no place in a {config['model_type']} model: qlab would leave it out of it")
    return found


def configuration(files: GGUFFiles) -> dict[str, Any]:
    """config.json of the model.

    Raises:
        UserError: see configuration.model_config.
    """
    factors = files.read("rope_freqs.weight") if "rope_freqs.weight" in files.shapes else None
    return model_config(files.settings, files.arrays, files.shapes, factors)


def check_kind(name: str, kind: str) -> None:
    """Raise a UserError unless gguf-py decodes the type."""
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    try:
        if kind not in FLOATS:
            gguf.quants.dequantize(np.zeros((1, size), np.uint8), gguf.GGMLQuantizationType[kind])
    except NotImplementedError as error:
        raise UserError(
            f"{name} is stored as {kind}, which gguf-py does not decode: take a file of another type, or the original"
        ) from error


def decode(tensor: Tensor, kind: str) -> Tensor:
    """The weights of a stored tensor: floats as they are, others float32."""
    return tensor if kind in FLOATS else from_bytes(tensor, kind)


def decode_form(parts: dict[str, Tensor], kinds: Sequence[str], name: str, config: dict[str, Any]) -> Tensor:
    """The plain tensor `name` of the stored ones that hold it."""
    decoded = [decode(tensor, kind) for tensor, kind in zip(parts.values(), kinds, strict=True)]
    return form_of(name, config).join(decoded, standard(config))


def describe(files: GGUFFiles) -> str:
    """The types in a few words, such as "GGUF Q4_1 and Q8_0": quantized ones where there are any, most weights first."""
    weights: dict[str, int] = {}
    for name, shape in files.shapes.items():
        if len(shape) > 1:
            weights[files.dtypes[name]] = weights.get(files.dtypes[name], 0) + int(np.prod(shape, dtype=np.int64))
    kinds = sorted(weights, key=lambda kind: -weights[kind])
    *others, last = [kind for kind in kinds if kind not in FLOATS] or kinds[:1]
    return f"GGUF {', '.join(others)} and {last}" if others else f"GGUF {last}"
