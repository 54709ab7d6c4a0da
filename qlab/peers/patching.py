"""Reaching into another library, for as long as a context lasts and no longer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ABSENT = object()


@contextmanager
def patched(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Set each (object, attribute, value); afterwards put back what was there, or remove what was not."""
    before = [(target, name, vars(target).get(name, _ABSENT)) for target, name, _ in changes]  # its own, not its class's
    try:
        for target, name, value in changes:
            setattr(target, name, value)
        yield
    finally:
        for target, name, value in reversed(before):
            delattr(target, name) if value is _ABSENT else setattr(target, name, value)
