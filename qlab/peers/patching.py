"""Reaching into another library, or keeping it quiet, for as long as a context lasts and no longer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
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


@contextmanager
def silent() -> Iterator[None]:
    """Keep to themselves what libraries say while they are imported."""
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            # Not simplefilter alone: AutoAWQ and torch set filters of their own as they are imported.
            warnings.showwarning = lambda *_, **__: None
            yield
    finally:
        logging.disable(logging.NOTSET)
