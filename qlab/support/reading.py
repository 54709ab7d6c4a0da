"""JSON files that users have: read, or refused by one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qlab.support.errors import UserError


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: it is damaged.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file.parent.name}/{file.name} is not JSON ({error}); download or copy it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{file.parent.name}/{file.name} holds no JSON object; download or copy it again")
    return found
