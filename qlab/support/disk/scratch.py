"""Temporary folders of which none stays behind, however the process ends that made it.

A process holds a lock of the operating system's on each folder that it makes, which is free as soon as the process is gone. Whoever
makes the next one in the same place removes those that nobody holds: processes that were killed have left them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

PREFIX = ".qlab-scratch-"


class Scratch:
    """A new folder `path` in `place`, or among the system's temporary files; it goes with `remove()`, a `with`, or the process."""

    def __init__(self, place: Path | None = None) -> None:
        """Make the folder, and sweep the place.

        Raises:
            OSError: the disk is full or not writable.
        """
        place = place or Path(tempfile.gettempdir())
        sweep(place)
        self.path, held = _made(place)
        self.remove = weakref.finalize(self, _remove, self.path, held)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.remove()


def discard(folder: Path) -> None:
    """Remove a folder, at once: who is killed meanwhile leaves no part of it in its place.

    Raises:
        OSError: it cannot be removed.
    """
    try:
        with Scratch(folder.parent) as place:
            folder.rename(place / folder.name)
    except OSError:  # no room for one more folder
        shutil.rmtree(folder)


def sweep(place: Path) -> None:
    """Remove the folders in `place` that a killed process of this user has left."""
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError):  # held, gone meanwhile, or another user's
            held = _opened(folder)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(held).st_uid == os.geteuid():
                    shutil.rmtree(folder)
            finally:
                os.close(held)


def _made(place: Path) -> tuple[Path, int]:
    """A new folder and the descriptor that holds it. Where a disk knows no locks, nobody can hold it and nobody sweeps it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        with suppress(FileNotFoundError):  # swept before it was held: make another
            held = _opened(folder)
            if not _swept(held) and os.path.exists(folder) and os.path.samestat(os.fstat(held), os.stat(folder)):
                return folder, held
            os.close(held)


def _swept(held: int) -> bool:
    """Whether another process is about to remove the folder of this descriptor; where none is, it is held from here on."""
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a disk without locks
        return False
    return False


def _opened(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _remove(folder: Path, held: int) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:  # once more, where Ctrl-C came in the middle of it
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)
