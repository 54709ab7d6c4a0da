"""Progress bars with the time left: one call for loops in notebooks, on terminals and in logs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager, nullcontext, redirect_stderr
from io import StringIO
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], label: str, leave: bool = True) -> Iterable[T]:
    """Iterate with a bar on a terminal; nothing is drawn where nobody watches (batch runs, redirected output)."""
    total = len(items) if isinstance(items, Sized) else None
    return tqdm(items, desc=label, total=total, leave=leave, disable=None, file=sys.stderr)


@contextmanager
def bars_on_terminals() -> Iterator[None]:
    """Within the context, a library that draws its bars in any case draws them on a terminal only, as `progress` does."""
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(StringIO()):
        yield


@contextmanager
def counter(total: int, done: int, label: str) -> Iterator[Callable[[str, Mapping[str, float]], None]]:
    """A bar over `total` steps of which `done` are; call what it yields after each step, with a text and the errors found."""
    with tqdm(total=total, initial=done, desc=label, disable=None, file=sys.stderr) as bar:

        def step(text: str, errors: Mapping[str, float]) -> None:
            worst = max(errors, key=lambda name: errors[name], default="")
            bar.set_postfix_str(f"{text}, worst {worst} {errors[worst]:.2%}" if worst else text, refresh=False)
            bar.update()

        yield step
