"""Ways to damage a model's files: each makes a function of the folder, for the tables of cases."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Change = Callable[[Path], Path | None]
"""Damages the model in a folder; the path to give to the command where it is not the folder."""
GONE = object()  # in place of a value: the key is taken out
WEIGHTS = "model.safetensors"
REFUSED, WORKS, EITHER = "refused", "works", "refused, or works"


@dataclass(frozen=True)
class Case:
    """An input by its name: the model it is made of (tests.fuzz.models), what is done to it, what is tried, and what must come of it.

    `says`: a word that the message must hold, where it is refused.
    """

    name: str
    change: Change
    commands: Sequence[str] = ("evaluate", "quantize")
    outcome: str = REFUSED
    says: str = ""
    model: str = "plain"


def both(*changes: Change) -> Change:
    """One after the other."""

    def change(folder: Path) -> Path | None:
        found = [one(folder) for one in changes]
        return next((path for path in found if path), None)

    return change


def values(file: str, **new: Any) -> Change:
    """Put values into a JSON object, or take keys out (GONE)."""

    def change(folder: Path) -> None:
        known = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
        known = {name: value for name, value in (known | new).items() if value is not GONE}
        (folder / file).write_text(json.dumps(known))

    return change


def config(**new: Any) -> Change:
    return values("config.json", **new)


def within(file: str, path: Sequence[str | int], value: Any) -> Change:
    """Put a value at a path into a JSON object."""

    def change(folder: Path) -> None:
        known = json.loads((folder / file).read_text())
        place = known
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        (folder / file).write_text(json.dumps(known))

    return change


def content(file: str, data: bytes | str) -> Change:
    """Write a file anew, or a new one."""

    def change(folder: Path) -> None:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data if isinstance(data, bytes) else data.encode())

    return change


def cut(file: str, share: float) -> Change:
    """Keep the beginning of a file."""

    def change(folder: Path) -> None:
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[: int(share * len(whole))])

    return change


def gone(*files: str) -> Change:
    def change(folder: Path) -> None:
        for file in files:
            (folder / file).unlink()

    return change


def instead(file: str, make: Callable[[Path], Any]) -> Change:
    """Something else than a file in a file's place."""

    def change(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        make(folder / file)

    return change


def a_folder(file: str) -> Change:
    return instead(file, Path.mkdir)


def a_pipe(file: str) -> Change:
    return instead(file, os.mkfifo)


def a_loop(file: str) -> Change:
    return instead(file, lambda path: path.symlink_to(path.name))


def endless(file: str) -> Change:
    return instead(file, lambda path: path.symlink_to("/dev/zero"))


def sparse(file: str, size: int = 1 << 36) -> Change:
    """A file of zeros that takes no room on the disk."""

    def make(path: Path) -> None:
        with path.open("wb") as stream:
            stream.truncate(size)

    return instead(file, make)


def tensors(function: Callable[[dict[str, Tensor]], Any], file: str = WEIGHTS) -> Change:
    """Change the tensors of a safetensors file, by their names."""

    def change(folder: Path) -> None:
        state = load_file(folder / file)
        function(state)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / file, {"format": "pt"})

    return change


def tensor(ending: str, function: Callable[[Tensor], Tensor | None]) -> Change:
    """Change the first tensor whose name ends so; None takes it out."""

    def change(state: dict[str, Tensor]) -> None:
        name = next(name for name in sorted(state) if name.endswith(ending))
        new = function(state.pop(name))
        if new is not None:
            state[name] = new

    return tensors(change)


def poisoned(value: float) -> Callable[[Tensor], Tensor]:
    """A tensor with one number of another value."""

    def change(old: Tensor) -> Tensor:
        new = old.clone()
        new.view(-1)[0] = value
        return new

    return change


def header(function: Callable[[dict[str, Any]], Any], file: str = WEIGHTS) -> Change:
    """Change the header of a safetensors file, and leave its data as they are."""

    def change(folder: Path) -> None:
        whole = (folder / file).read_bytes()
        (length,) = struct.unpack("<Q", whole[:8])
        entries = json.loads(whole[8 : 8 + length])
        text = json.dumps(function(entries) or entries).encode()
        text += b" " * (-len(text) % 8)
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])

    return change


def split(places: Callable[[str], str], keep_all: bool = False) -> Change:
    """The weights in shards, with an index; `places` says in which file a tensor lies."""

    def change(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        files = {places(name) for name in state}
        for file in files:
            save_file({name: one for name, one in state.items() if keep_all or places(name) == file}, folder / file, {"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: places(name) for name in state}}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))

    return change


def nested(depth: int) -> str:
    """JSON, an object in an object."""
    return '{"a":' * depth + "1" + "}" * depth


def ints(old: Tensor) -> Tensor:
    return (old.float() * 100).to(torch.int32)
