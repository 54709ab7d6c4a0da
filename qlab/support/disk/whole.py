"""A small file that is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

from qlab.support.disk.scratch import Scratch


def write_whole(path: Path, text: str) -> None:
    """Write a file, or replace the one that is there.

    Raises:
        OSError: the disk is full or not writable; what was there stays then.
    """
    with Scratch(path.parent) as unfinished:
        (unfinished / path.name).write_text(text, encoding="utf-8")
        (unfinished / path.name).replace(path)
