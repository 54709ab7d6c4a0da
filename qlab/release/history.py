"""Every attempt at a release, a line each, and the link to the one that is served: they move together, or neither does."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from qlab.models.texts.jsonl import json_lines, read_utf8
from qlab.support.disk.scratch import Scratch, sweep

CURRENT, HISTORY = "current", "history.jsonl"


def record(out: Path, note: dict[str, Any]) -> None:
    """Add the line of an attempt to the history and, where it was not refused, point OUT/current to it: both or neither.

    The line counts once it has its end, which is written when the link has moved: over a byte that is there already, so that no full
    disk comes between. Of an attempt that was killed, `settle` removes the line, or ends it if the link has moved.

    Raises:
        OSError: one of them cannot be written.
    """
    (out / HISTORY).touch()
    with (out / HISTORY).open("r+b", buffering=0) as file:
        line, start = f"{json.dumps(note)} ".encode(), file.seek(0, os.SEEK_END)
        try:
            if (file.write(line) or 0) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out / HISTORY))
            os.fsync(file.fileno())
            if not note["refused"]:
                point(out / CURRENT, note["release"])
            file.seek(start + len(line) - 1)
            file.write(b"\n")
        except OSError:
            file.truncate(start)
            raise


def settle(out: Path) -> None:
    """Tidy what a killed attempt has left in `out`: temporary folders, and a line without its end.

    The line gets its end if the link points to its release, and is removed if not.
    """
    sweep(out)
    file = out / HISTORY
    if not file.exists():
        return
    whole, end, last = file.read_bytes().rpartition(b"\n")
    if last.endswith(b" ") and points_to(out / CURRENT, last):
        with file.open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            stream.write(b"\n")
    else:
        os.truncate(file, len(whole + end))


def points_to(link: Path, line: bytes) -> bool:
    """Whether `link` leads to the release that the history's `line` tells of, and the line is not of a refusal."""
    try:
        note = json.loads(line)
        return not note["refused"] and os.readlink(link) == note["release"]
    except (ValueError, TypeError, KeyError, RecursionError, OSError):  # the line or the link is not whole, or not qlab's
        return False


def point(link: Path, target: str) -> None:
    """Make `link` point to its neighbour `target`, at once: whoever opens it finds the old or the new, never nothing."""
    with Scratch(link.parent) as folder:
        (folder / "new").symlink_to(target, target_is_directory=True)
        os.replace(folder / "new", link)


def history(out: Path) -> list[dict[str, Any]]:
    """Every attempt at `out` that came to its end, the oldest first.

    Raises:
        UserError: the file is no such history, or a line of it is damaged.
    """
    file = out / HISTORY
    if not os.path.lexists(file):
        return []
    whole, _, _ = read_utf8(file).rpartition("\n")
    return [note for _, note in json_lines(whole, file.name)]
