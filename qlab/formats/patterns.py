"""Patterns by which a checkpoint's configuration names layers. They are others' text: none may keep qlab busy."""

from __future__ import annotations

import regex

from qlab.support.errors import UserError

PATIENCE = 0.2  # seconds for a pattern and a name; they take microseconds
WHY = "take the original checkpoint, or convert it with the library that wrote it"


def fits(pattern: str, layer: str) -> bool:
    """Whether a pattern fits a layer's name, from its beginning on.

    Raises:
        UserError: it is no pattern, or one that takes longer than any that is written to be used.
    """
    try:
        return regex.match(pattern, layer, timeout=PATIENCE) is not None
    except (regex.error, TimeoutError, RecursionError) as error:
        raise UserError(
            f"the pattern {pattern[:80]!r} in the quantization_config cannot be used ({str(error)[:80] or 'no end'}): {WHY}"
        ) from error
