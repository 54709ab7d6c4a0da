"""Progress bars with the time left: one call for loops in notebooks, on terminals and in logs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sized
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], label: str, leave: bool = True) -> Iterable[T]:
    """Iterate with a bar on a terminal; nothing is drawn where nobody watches (batch runs, redirected output)."""
    total = len(items) if isinstance(items, Sized) else None
    return tqdm(items, desc=label, total=total, leave=leave, disable=None, file=sys.stderr)
