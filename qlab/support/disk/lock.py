"""A lock on a folder: one process at a time works there, and whoever comes second is told who does.

The lock is the operating system's (flock), so that of a process that is gone, however it went, is free at once; the owner's
name lies in the file for those who find it taken.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qlab.support.errors import UserError

OWNER_BYTES = 4096  # of the note that are read


@contextmanager
def locked(file: Path, subject: str, wait: bool = False) -> Iterator[None]:
    """Hold the lock `file` on `subject`, which messages name, for as long as the context lasts; then the file is gone.

    Raises:
        UserError: another process holds it, unless it is waited for; something else lies there; or there is no place for it, or no locks
            on this disk.
    """
    descriptor = _take(file, subject, wait)
    try:
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"}
        with suppress(OSError):  # a full disk: then the second is told less
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        yield
    finally:
        with suppress(OSError):  # first, while it is ours
            file.unlink()
        os.close(descriptor)


def _take(file: Path, subject: str, wait: bool) -> int:
    """The descriptor of the file that now lies at `file`, locked."""
    while True:
        descriptor = _open(file, subject)
        try:
            _lock(descriptor, subject, wait)
            _check(descriptor, file, subject)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(file, follow_symlinks=False)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner took it away as he left: lock the next one


def _open(file: Path, subject: str) -> int:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise UserError(f"cannot lock {subject}: {error.strerror} ({file}); remove that file, or choose another folder") from error


def _check(descriptor: int, file: Path, subject: str) -> None:
    """See that it is a lock, new or left by a process that is gone, and nobody's file."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or (found.st_size and _owner(descriptor) is None):
        raise UserError(f"cannot lock {subject}: {file} is not qlab's; remove that file, or choose another folder")


def _lock(descriptor: int, subject: str, wait: bool) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        who = owner_in(descriptor)
        if not wait:
            raise UserError(f"{subject} is being worked on by {who}: wait until it has ended, or choose another folder") from error
        print(f"waiting for {who}, which works on {subject}", file=sys.stderr)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        raise UserError(f"cannot lock {subject}: {error.strerror}; choose a folder on a disk that has locks") from error


def owner_in(descriptor: int) -> str:
    """Who holds a lock, in words, as its file tells it."""
    owner = _owner(descriptor)
    return f"process {owner['pid']} on {owner['host']} since {owner['started']}" if owner else "another process"


def _owner(descriptor: int) -> dict[str, Any] | None:
    """The note in a lock's file; None where there is none, or something else."""
    try:
        note = json.loads(os.pread(descriptor, OWNER_BYTES, 0))
        return {"pid": int(note["pid"]), "host": str(note["host"])[:80], "started": str(note["started"])[:40]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
