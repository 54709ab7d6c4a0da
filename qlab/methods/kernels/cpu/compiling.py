"""How numba compiles a kernel, and how its rows are shared out among threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import torch

TILE = 64  # rows that a kernel computes at a time: what belongs to them stays in the fastest cache
CHUNK = 4 * TILE  # rows that a thread takes at a time


def compiled(function: Callable[..., Any], sums: bool = False) -> Any:
    """The function in machine code, which is kept beside its file, or in the user's cache, for the next process.

    Numbers are rounded after each operation, as PyTorch's operations round them; a kernel's `sums` may be added up in an order that suits
    the processor. What it calls, and numbers that it is compiled with, stand in the same file: numba compiles anew when that changes. These
    options are not looked at: whoever changes them here removes `__pycache__`.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc"} if sums else False}
    try:
        made = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # there is no folder that it could be kept in
        return numba.njit(**options)(function)
    for name in ("load_overload", "save_overload"):
        setattr(made._cache, name, _or_nothing(getattr(made._cache, name)))
    return made


def _or_nothing(keeping: Callable[..., Any]) -> Callable[..., Any]:
    """What reads or writes kept machine code; where it cannot (a full disk, a damaged file), the code is made once more."""

    def tried(*arguments: Any) -> Any:
        try:
            return keeping(*arguments)
        except Exception:
            return None

    return tried


def share_rows(rows: int, work: Callable[[int, int], None]) -> None:
    """Call `work(first, last)` for all rows, on as many threads as PyTorch has here. Rows do not depend on each other: the result is the
    same on any number."""
    threads = torch.get_num_threads()
    if threads == 1 or rows <= CHUNK:
        work(0, rows)
        return
    starts = range(0, rows, CHUNK)
    for _ in _pool(threads).map(lambda first: work(first, min(first + CHUNK, rows)), starts):
        pass


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """The threads of this process."""
    return ThreadPoolExecutor(threads, thread_name_prefix="qlab-kernel")


os.register_at_fork(after_in_child=_pool.cache_clear)  # a copy has none of its threads
