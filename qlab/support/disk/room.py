"""A full disk, however a library tells it, in one message: where, what is needed, what is free, what to do."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from qlab.support.errors import UserError

SAID = "the disk is full"  # at the beginning of every message of one
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the disk, a quota, a limit on files
NUMBER = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)")  # as Python writes it, and Rust, in which safetensors is written
SHORT = re.compile(r"\d+ requested and \d+ written")  # NumPy, which does not say why


@contextmanager
def room_for(place: Path, needed: float | None = None) -> Iterator[None]:
    """What is done here writes about `needed` bytes below the folder `place`.

    Raises:
        UserError: there was no room for it.
    """
    try:
        yield
    except Exception as error:
        if number := full(error):
            raise UserError(no_room(number, place, needed)) from error
        raise


def full(error: BaseException | None) -> int:
    """The system's number for a full disk behind an error, one of FULL; 0 where it was another."""
    while error is not None:
        if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
            return errno.ENOSPC
        if isinstance(error, OSError) and error.errno in FULL:
            return error.errno
        if isinstance(error, (OSError, SafetensorError)) and (number := full_by(str(error))):
            return number
        error = error.__cause__ or error.__context__
    return 0


def full_by(message: str) -> int:
    """The same, of an error of which there is only its text."""
    if SHORT.search(message):
        return errno.ENOSPC
    found = NUMBER.search(message)
    number = int(found[1] or found[2]) if found else 0
    return number if number in FULL else 0


def no_room(number: int, place: Path | None = None, needed: float | None = None) -> str:
    """The message of a full disk: at `place`, where that is known, and with what it lacks of the `needed` bytes."""
    wanted = "more is needed than is free"
    if place:
        there = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
        free = f"{shutil.disk_usage(there).free / 1e6:.1f} MB"
        wanted = f"{f'about {needed / 1e6:.1f} MB are' if needed else 'more is'} needed in {there}, where {free} are free"
    return f"{SAID} ({os.strerror(number)}): {wanted}. Make room, or choose another disk; the same command then goes on"
