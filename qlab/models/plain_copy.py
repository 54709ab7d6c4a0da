"""A model as an ordinary checkpoint in half precision, for libraries that read nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from qlab.formats.folder import finish_folder
from qlab.formats.half import half_precision
from qlab.formats.shards import assemble
from qlab.models.opening import OpenedModel, locate
from qlab.support.disk.lock import locked
from qlab.support.disk.scratch import Scratch, discard
from qlab.support.progress import progress

ORIGIN = "qlab-origin.json"  # which model the copy was made of


def plain_copy(source: OpenedModel, place: Path) -> OpenedModel:
    """The model `source`, whose weights are stored quantized, as safetensors in the folder `place`, with tokenizer and configuration.

    Weights are BF16 where the model is marked so, since it may overflow FP16, and FP16 otherwise.

    One tensor is in memory at a time. A copy that is there already is taken, if it was made of the same model; the folder exists whole
    or not at all. Who wants the same copy while it is made waits for it.

    Raises:
        UserError: the checkpoint is not complete, a value leaves the range of that precision, or there is no tokenizer.
        OSError: the disk is full or not writable.
    """
    kind = str(source.trained_in).removeprefix("torch.")
    origin = {"model": source.fingerprint, "stored": source.checkpoint.description, "dtype": kind}
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(place.parent / f".{place.name}.lock", str(place), wait=True):
        if not made_of(place, origin):
            make_copy(source, place, origin)
    return replace(locate(str(place)), name=source.name)


def made_of(place: Path, origin: dict[str, Any]) -> bool:
    """Whether the copy at `place` is there and was made of this model."""
    file = place / ORIGIN
    return file.is_file() and json.loads(file.read_text()) == origin


def make_copy(source: OpenedModel, place: Path, origin: dict[str, Any]) -> None:
    """Make the copy beside its place, and move it there whole."""
    source.check_complete()
    with Scratch(place.parent) as unfinished:
        out, parts = unfinished / "copy", unfinished / "parts"
        out.mkdir()
        parts.mkdir()
        write_weights(source, parts, out)
        finish_folder(source.folder, source.config, [], out, None)
        config = {name: value for name, value in source.config.items() if name not in ("quantization_config", "torch_dtype")}
        (out / "config.json").write_text(json.dumps(config | {"dtype": origin["dtype"]}, indent=2) + "\n")
        (out / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n")
        if place.exists():
            discard(place)
        out.rename(place)


def write_weights(source: OpenedModel, parts: Path, out: Path) -> None:
    """Every tensor of the model's class in half precision: first each into a file of its own in `parts`, then all into `out`."""
    fused: dict[str, list[str]] = {}
    for name in source.layout.shapes:
        piece = source.layout.pieces.get(name)
        fused.setdefault(piece.fused if piece else name, []).append(name)
    files = []
    for number, (name, held) in enumerate(progress(list(fused.items()), "decoding", leave=False)):
        tensor = whole(source, name, held) if name in source.layout.fused else source.checkpoint.read(name)
        files.append(parts / f"{number:05}.safetensors")
        save_file({name: half_precision(name, tensor, source.trained_in).contiguous()}, files[-1])
    assemble(files, out)


def whole(source: OpenedModel, name: str, held: list[str]) -> Tensor:
    """The fused tensor `name` of the pieces `held` in it."""
    found = torch.empty(source.layout.fused[name])
    for own in held:
        source.layout.pieces[own].of(found).copy_(source.checkpoint.read(own))
    return found
