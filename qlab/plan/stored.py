"""How a model's files hold it, for the planner: what is quantized already is counted as it lies there, whoever wrote it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qlab.formats.gguf.header import Tensor, read_header
from qlab.formats.stored import describe
from qlab.models.configuration import quantization_of
from qlab.models.locating import weight_files
from qlab.models.named import named_folder
from qlab.plan.plan import Shape
from qlab.support.errors import UserError
from qlab.support.reading import path_of, read_json

ENDS = ("token_embd.weight", "output.weight")  # what GGUF calls embedding and head
HALF = 16.0  # bits of a weight of these in every other format
FLOATS = {"F32", "F16", "BF16"}


def as_stored(name: str, shape: Shape) -> tuple[Shape, str] | None:
    """The shape of the model `name`, a folder or GGUF file, with the bits that its files spend on a weight, and what they are stored as in
    words; None where the model is not here, or not quantized.

    Raises:
        UserError: files that are damaged, or lack parts.
    """
    place = named_folder(name) or path_of(name)
    if not place.is_dir() and not (place.suffix == ".gguf" and place.is_file()):
        return None
    files = weight_files(place)
    if files and files[0].suffix == ".gguf":
        tensors = {name: tensor for file in files for name, tensor in read_header(file).tensors.items()}
        return gguf_bits(tensors, shape)
    config = place / "config.json"
    quantization = quantization_of(read_json(config)) if config.is_file() else {}
    if not files or not quantization:
        return None
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(f"{missing[0].name} of {place.name} is not there: fetch it again, or give its config.json for a plan of its sizes")
    linear = 8 * sum(file.stat().st_size for file in files) - HALF * shape.embedding_parameters
    if linear <= 0:
        raise UserError(f"the weight files of {place.name} are smaller than its embedding: they are not whole, fetch them again")
    return replace(shape, stored=(linear / shape.linear_parameters, HALF)), called(quantization)


def called(quantization: dict[str, Any]) -> str:
    """What a format is called, also one that qlab does not read: its files are counted all the same."""
    method = str(quantization.get("quant_method") or "an unnamed format")
    if quantization.get("load_in_8bit"):
        return f"{method} INT8"
    try:
        return describe(quantization)
    except UserError:
        return method


def gguf_bits(tensors: dict[str, Tensor], shape: Shape) -> tuple[Shape, str] | None:
    """The same of a GGUF file's tensors."""
    kinds = sorted({tensor.kind for tensor in tensors.values()} - FLOATS)
    if not kinds:
        return None
    ends = sum(tensor.bytes for name, tensor in tensors.items() if name in ENDS)
    rest = sum(tensor.bytes for tensor in tensors.values()) - ends
    packed = sum(tensor.bytes for name, tensor in tensors.items() if tensor.kind == "Q4_K" and name not in ENDS)
    stored = (8 * rest / shape.linear_parameters, 8 * ends / shape.embedding_parameters)
    return replace(shape, stored=stored, stored_q4_k=packed), f"GGUF, {', '.join(kinds)}"
