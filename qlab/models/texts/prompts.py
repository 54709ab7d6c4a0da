"""Prompts: the workbook's own, in French and English, or those of a user's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qlab import DATA
from qlab.models.texts.jsonl import json_lines, read_utf8, string_of
from qlab.support.errors import UserError

PROMPTS = DATA / "prompts.jsonl"
LABELS = ("id", "language", "kind")  # text where they are there


def load_prompts(file: Path | None = None) -> list[dict[str, Any]]:
    """Prompts of a JSONL file, each an object with `prompt`; without a file the workbook's own, which have `id`, `language` and `kind` too.

    Raises:
        UserError: the file cannot be read, or a line is no such object.
    """
    path = file or PROMPTS
    found = []
    for where, record in json_lines(read_utf8(path), path.name):
        for key in ("prompt", *(label for label in LABELS if label in record)):
            string_of(record, key, where)
        found.append(record)
    if not found:
        raise UserError(f"{path.name} holds no prompts: expected a JSON object with a 'prompt' on each line")
    return found
