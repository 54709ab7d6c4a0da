"""The two notes in an artifact's folder, qlab.json and qlab-cost.json: what they must hold, and how they are read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, ValidationError

from qlab.support.errors import UserError

MANIFEST = "qlab.json"
COST = "qlab-cost.json"  # apart from the manifest: the same inputs make the same bytes everywhere else
LARGEST = 64 << 20  # bytes of a note that are read; a line for each layer of the largest models takes a hundredth


class Inputs(BaseModel):
    """All that an artifact's bytes depend on."""

    model_config = ConfigDict(extra="allow", strict=True)
    model: str
    recipe: dict[str, Any]
    calibration: dict[str, Any]
    versions: dict[str, str]
    device: str


class Manifest(BaseModel):
    """qlab.json. `files` are the names of all files that qlab put into the folder; what else is there is a user's."""

    model_config = ConfigDict(extra="allow", strict=True)
    inputs: Inputs
    errors: dict[str, float] = {}
    notes: dict[str, str] = {}
    files: list[str] = []


class Cost(BaseModel):
    """qlab-cost.json: seconds, and bytes at the peak."""

    model_config = ConfigDict(extra="allow", strict=True)
    seconds: NonNegativeFloat
    peak_bytes: NonNegativeInt


Note = TypeVar("Note", bound=BaseModel)


def read_note(file: Path, kind: type[Note]) -> Note:
    """The note in `file`.

    Raises:
        UserError: it is no regular file, damaged, or another program's.
    """
    shown = f"{file.parent.name}/{file.name}"
    if not file.is_file() or file.stat().st_size > LARGEST:
        raise UserError(f"{shown} is not a note that qlab wrote: expected a JSON file; remove the folder, or choose another")
    try:
        return kind.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{shown} is damaged, or another program's ({where[:80]}: {first['msg'][:120]}): expected what qlab writes beside an artifact; "
            "make the artifact again in another folder"
        ) from error


def made_from(folder: Path) -> str:
    """A hash of all that the bytes of the finished artifact in `folder` depend on; empty where there is none.

    Raises:
        UserError: its manifest is damaged, or another program's.
    """
    if not (folder / MANIFEST).exists() or not (folder / COST).exists():
        return ""
    inputs = read_note(folder / MANIFEST, Manifest).inputs.model_dump()
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
