"""The same numbers stored otherwise: grouped integers in another layout, and a GGUF file in parts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from qlab.artifacts.artifact import LIBRARIES, Artifact, finish
from qlab.artifacts.card import original_of
from qlab.artifacts.placing import check_place
from qlab.formats.compressed_tensors.scheme import scheme_in
from qlab.formats.dynamic import all_settings
from qlab.formats.folder import finish_folder
from qlab.formats.gguf.file import split
from qlab.models.configuration import quantization_of
from qlab.models.opening import OpenedModel
from qlab.recipes.fitting import left_alone, stored_layers
from qlab.recipes.layouts import LAYOUTS, Layout, Left, Scheme
from qlab.support.disk.lock import locked
from qlab.support.disk.room import room_for
from qlab.support.disk.scratch import Scratch
from qlab.support.errors import UserError
from qlab.support.processes.process import peak_bytes
from qlab.support.versions import version_of

WHY = f"convert changes between {', '.join(LAYOUTS)}"


def convert(source: OpenedModel, wanted: str, out: Path) -> Artifact:
    """Write the quantized checkpoint `source` in the layout `wanted`, a name of LAYOUTS, to the folder `out`.

    What is not quantized is copied as it is. Dequantized, both hold the same numbers.

    Raises:
        UserError: a source that is no checkpoint of these layouts, something that `wanted` cannot hold, something at `out` that qlab did
            not make, or a full disk.
    """
    if wanted not in LAYOUTS:
        raise UserError(f"no layout {wanted!r}: expected {', '.join(LAYOUTS)}")
    check_place(out, source.path)
    source.check_complete()
    layout, scheme = LAYOUTS[wanted], scheme_of(source)
    if scheme.bits not in layout.widths:
        raise UserError(f"{source.name} has {scheme.bits} bits, and the {layout.label} format holds {', '.join(map(str, layout.widths))}")
    started = time.perf_counter()
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.parent / f".{out.name}.lock", str(out), wait=True), Scratch(out.parent) as work, room_for(out.parent):
        parts = [write_part(work / f"{number:05d}.safetensors", tensors) for number, tensors in enumerate(repacked(source, layout, scheme))]
        made = work / out.name
        made.mkdir()
        kept, quantized = stored_layers(source.layout, parts)
        entry = layout.configuration(scheme, Left(kept, quantized, left_alone(source)))
        finish_folder(source.folder, source.config, parts, made, entry, dtype=source.trained_in, called=source.checkpoint.stored_name)
        cost = {"seconds": time.perf_counter() - started, "peak_bytes": peak_bytes()}
        return finish(made, out, original_of(source), inputs_of(source, wanted), details(source), cost)


def in_parts(source: OpenedModel, most: int, out: Path) -> Artifact:
    """Write the GGUF file `source` in numbered parts of at most `most` bytes of tensors to the folder `out`.

    Raises:
        UserError: a source that is no GGUF file, or as qlab.formats.gguf.file.split and convert.
    """
    if source.gguf is None:
        raise UserError(f"{source.name} is no GGUF file: --parts divides these, others are in parts of their own")
    check_place(out, source.path)
    source.check_complete()
    started = time.perf_counter()
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.parent / f".{out.name}.lock", str(out), wait=True), Scratch(out.parent) as work, room_for(out.parent):
        made = work / out.name
        made.mkdir()
        parts = split(source.gguf, most, made)
        finish_folder(source.folder, source.config, [], made, None)
        cost = {"seconds": time.perf_counter() - started, "peak_bytes": peak_bytes()}
        return finish(made, out, original_of(source), inputs_of(source, f"GGUF in {len(parts)} parts"), details(source), cost)


def repacked(source: OpenedModel, layout: Layout, scheme: Scheme) -> Iterator[dict[str, Tensor]]:
    """The tensors of a block at a time, and each of what lies around the blocks, as `layout` stores them.

    Raises:
        UserError: a quantized weight that is none of grouped integers, or one that the layout cannot hold.
    """
    within: dict[str, list[str]] = {}  # by a block's number, or by the name of what lies around them
    for name in source.checkpoint.shapes:
        block = name.removeprefix(f"{source.layout.blocks}.").partition(".")[0] if source.layout.inside(name) else name
        within.setdefault(block, []).append(name)
    for names in within.values():
        found: dict[str, Tensor] = {}
        for name in names:
            layer = name.removesuffix(".weight")
            if integers := source.checkpoint.integers(name):
                try:
                    packed = layout.pack(integers, scheme)
                except UserError as error:
                    raise UserError(f"{layer}: {error}") from error
                found |= {f"{layer}.{kind}": tensor for kind, tensor in packed.items()}
            else:
                found |= source.checkpoint.as_stored(name, source.checkpoint.read(name))
        yield found


def write_part(file: Path, tensors: dict[str, Tensor]) -> Path:
    """Write some tensors to `file`, and say where."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def scheme_of(source: OpenedModel) -> Scheme:
    """How the checkpoint is quantized, as its configuration says.

    Raises:
        UserError: not as one scheme of grouped integers.
    """
    said = quantization_of(source.config)
    kind = str(said.get("quant_method", "not quantized"))
    if kind == "compressed-tensors":
        groups = [group.weights for group in scheme_in(said).config_groups.values() if group.weights]
        if len(groups) != 1 or groups[0].type != "int" or groups[0].strategy not in ("group", "channel"):
            raise UserError(f"{source.name} has other weights than integers of one kind in groups or rows: {WHY} of that kind")
        weights = groups[0]
        return Scheme(weights.num_bits, weights.group_size or -1, weights.symmetric, weights.actorder in ("group", True))
    if kind == "gptq":
        first, *others = [
            Scheme(each["bits"], each.get("group_size", -1), bool(each.get("sym", True)), bool(each.get("desc_act", False)))
            for each in all_settings(said)
        ]
        if any(other != first for other in others):
            raise UserError(f"{source.name} has layers of other bits or groups than the rest (dynamic): {WHY} where all are of one kind")
        return first
    if kind == "awq":
        return Scheme(said.get("bits", 4), said.get("group_size", -1), False, False)
    raise UserError(f"{source.name} is {kind}: {WHY}; 'qlab quantize' makes one of them from the original model")


def inputs_of(source: OpenedModel, wanted: str) -> dict[str, Any]:
    """All that the new checkpoint's bytes depend on."""
    return {
        "model": source.fingerprint,
        "recipe": {"recipe": "Converted", "layout": wanted, "from": source.checkpoint.description},
        "calibration": {},
        "versions": {name: version_of(name) for name in LIBRARIES},
        "device": "cpu",
    }


def details(source: OpenedModel) -> dict[str, Any]:
    """What the manifest of the source says of its making, where it is an artifact of qlab."""
    before = Artifact.open(source.path) if source.path.is_dir() else None
    return {key: before.manifest[key] for key in ("errors", "notes", "asked", "data") if key in before.manifest} if before else {}
