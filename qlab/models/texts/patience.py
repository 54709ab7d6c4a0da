"""Code that came with a model, such as its chat template, given so many seconds and no more."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Endless(Exception):
    """It was not done in time."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Interrupt what this thread does in the block where it takes longer: between two steps of the interpreter, so not within one of C.

    Raises:
        Endless: it did.
    """
    thread, lock, done = threading.get_ident(), threading.Lock(), False

    def interrupt() -> None:
        with lock:
            if not done:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Endless))

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:  # from here on nothing is interrupted
            done = True
        timer.cancel()
