"""GGUF: one file with weights, configuration and tokenizer, as llama.cpp and Ollama read it.

A model passes through in three steps, so that never more than a block is in memory: tensors are encoded where they are
read (qlab.formats.gguf.encoding), the encoded ones wait in safetensors files, and assemble joins them to a file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import safe_open

from qlab.formats.gguf.encoding import gguf_names
from qlab.formats.gguf.metadata import add_configuration, architecture, rope_factors, sliding_window
from qlab.formats.gguf.mix import check_mix
from qlab.formats.gguf.tokens.tokenizer import add_tokenizer, read_vocabulary
from qlab.formats.gguf.tokens.tokenizer_rules import tokenizer_remarks
from qlab.support.errors import UserError


def check_model(folder: Path, config: dict[str, Any], names: Iterable[str]) -> None:
    """Raise the UserError that writing the model of `folder`, with tensors of these `names`, would: see assemble.

    A walk may take hours before it assembles.
    """
    for name in names:
        gguf_names(name, config)
    read_vocabulary(folder, config["vocab_size"])


def remarks(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Where llama.cpp computes another function than the model of `folder`, because a GGUF file cannot say it: subject → sentence.

    Raises:
        UserError: see check_model.
    """
    found = {}
    if (window := sliding_window(config)) is not None:
        found["sliding window"] = (
            f"this model attends to the last {window} tokens; GGUF files of type {config['model_type']} have no such window and attend "
            f"to all. Up to {window} tokens of context they compute the same, beyond them another function: serve with --context {window}"
        )
    if said := tokenizer_remarks(folder):
        found["tokenizer"] = said
    return found


@dataclass(frozen=True)
class Stored:
    """A tensor that waits in a part: where, under which key, and its shape as stored."""

    part: Path
    key: str
    shape: tuple[int, ...]

    @property
    def kind(self) -> str:
        return self.key.split(":")[0]

    @property
    def name(self) -> str:
        return self.key.split(":")[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype({"F32": np.float32, "F16": np.float16}.get(self.kind, np.uint8))

    def read(self) -> np.ndarray:
        with safe_open(self.part, "np") as opened:
            return np.asarray(opened.get_tensor(self.key))


def assemble(parts: Sequence[Path], folder: Path, config: dict[str, Any], names: Iterable[str], mix: str, out: Path) -> None:
    """Write `out` from the encoded tensors in `parts` and the tokenizer in `folder`, one tensor in memory at a time.

    `parts` are safetensors files of what encode_tensors returned for the tensors `names` of the model, all of them. The same tensors make
    the same bytes, however they are divided.

    Raises:
        UserError: an architecture, tokenizer or mix that this writer does not know; tensors that are missing or come twice.
    """
    check_mix(mix)
    arch = architecture(config)
    stored = stored_tensors(parts)
    check_complete([tensor.name for tensor in stored], config, names)
    factors = rope_factors(config)
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[arch])
    add_configuration(writer, config, mix)
    add_tokenizer(writer, folder, config["vocab_size"])
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, np.dtype(np.float32), factors.numel() * 4)
    for tensor in stored:
        size = int(np.prod(tensor.shape)) * tensor.dtype.itemsize
        writer.add_tensor_info(tensor.name, tensor.shape, tensor.dtype, size, gguf.GGMLQuantizationType[tensor.kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors.numpy())
    for tensor in stored:
        writer.write_tensor_data(tensor.read())
    writer.close()


def split(file: Path, most: int, out: Path) -> list[Path]:
    """Write a GGUF file in numbered parts into the folder `out`, as llama-gguf-split does: settings in the first, tensors in their order,
    at most `most` bytes of them in each part (a larger tensor has one to itself).

    Raises:
        UserError: the file is a part itself, or would be one.
    """
    reader = gguf.GGUFReader(file)
    if gguf.Keys.Split.LLM_KV_SPLIT_COUNT in reader.fields:
        raise UserError(f"{file.name} is a part itself: join the parts first (llama-gguf-split --merge)")
    writer = gguf.GGUFWriter(out / file.name, str(reader.fields[gguf.Keys.General.ARCHITECTURE].contents()), split_max_size=most)
    for name, field in reader.fields.items():
        # Not the alignment: gguf-py would write it into the first part alone, and lay out all by it. Nor empty arrays: it refuses them.
        own = name.startswith("GGUF.") or name in (gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.ALIGNMENT)
        if not own and field.types != [gguf.GGUFValueType.ARRAY]:
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor_info(tensor.name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes, tensor.tensor_type)
    if (parts := len(writer.tensors)) < 2:
        raise UserError(f"parts of {most:,} bytes do not divide the tensors of {file.name}: give --parts a size above 0 and below theirs")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()
    return [out / f"{file.stem}-{number:05d}-of-{parts:05d}.gguf" for number in range(1, parts + 1)]


def stored_tensors(parts: Sequence[Path]) -> list[Stored]:
    """All tensors of the parts in the order of the file: embedding, blocks, output.

    Raises:
        UserError: a tensor comes twice.
    """
    found: dict[str, Stored] = {}
    for part in parts:
        with safe_open(part, "np") as opened:
            for key in opened.keys():  # noqa: SIM118 - not a dictionary
                tensor = Stored(part, key, tuple(opened.get_slice(key).get_shape()))
                if tensor.name in found:
                    raise UserError(f"{tensor.name} comes twice, in {found[tensor.name].part.name} and in {part.name}")
                found[tensor.name] = tensor
    return sorted(found.values(), key=lambda tensor: file_order(tensor.name))


def check_complete(found: Collection[str], config: dict[str, Any], names: Iterable[str]) -> None:
    """See that all parts of the tensors `names` of a model are among the GGUF names `found`.

    Raises:
        UserError: some are missing.
    """
    wanted = dict.fromkeys(target for name in names for target in gguf_names(name, config))
    if missing := [target for target in wanted if target not in found]:
        raise UserError(f"the model is not complete: it lacks {len(missing)} tensors, {', '.join(missing[:3])} among them")


def file_order(name: str) -> tuple[int, int, str]:
    """The embedding, then the blocks by number, then what follows them."""
    if name.startswith("blk."):
        return 1, int(name.split(".")[1]), name
    return (0 if name.startswith("token_embd") else 2), 0, name
