"""Where an artifact may be put: never in the place of anything that qlab did not make, nor into the model that is read.

A folder is qlab's if its manifest says so and lists every file in it. It is replaced only by a whole one, and moved aside until
that is in its place.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from qlab.artifacts.card import edited
from qlab.artifacts.licence import CARD
from qlab.artifacts.manifest import COST, MANIFEST, Manifest, read_note
from qlab.support.disk.scratch import discard
from qlab.support.errors import UserError

HERE, EXCHANGE = -100, 2  # AT_FDCWD of <fcntl.h>, RENAME_EXCHANGE of <linux/fs.h>


def check_place(folder: Path, model: Path) -> None:
    """See that an artifact of the model in the folder `model` may be put at `folder`, before any work.

    Raises:
        UserError: as check_apart; or something stands there that qlab did not make.
    """
    check_apart(folder, model)
    check_replaceable(folder)


def check_apart(folder: Path, model: Path) -> None:
    """See that a folder can be made at `folder`, or is there, and that what is written into it leaves the folder `model` alone.

    Raises:
        UserError: `folder` is the model, or lies in it or round it; something that is no folder stands on the way; or the disk may not
            be written there.
    """
    place, read = (Path(os.path.realpath(path)) for path in (folder, model))  # unlike resolve() it takes loops of links too
    for ancestor in [place, *place.parents]:
        if ancestor.exists() and os.path.samefile(ancestor, read):
            raise UserError(f"{folder} is, or lies in, the folder of the model that is read, {model}: choose another --out")
    if read.is_relative_to(place):
        raise UserError(f"the model that is read, {model}, lies in {folder}, which would be written anew: choose another --out")
    for ancestor in reversed(folder.parents):
        if os.path.lexists(ancestor) and not ancestor.is_dir():
            raise UserError(f"{ancestor} is not a folder, and {folder.name} shall lie below it: choose another --out")
    nearest = next(ancestor for ancestor in [place, *place.parents] if ancestor.is_dir())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{nearest} cannot be written: choose another --out")


def check_replaceable(folder: Path) -> None:
    """See that nothing is lost if `folder` is replaced.

    Raises:
        UserError: it is a link or a file, or a folder with anything in it that qlab did not put there; or its manifest is damaged.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        kind = "a link" if folder.is_symlink() else "a file"
        raise UserError(f"{folder} is {kind}, and a folder shall lie there: move it away, or choose another --out")
    if foreign := foreign_to(folder):
        raise UserError(f"{folder} is left alone, since qlab did not make {foreign}: move it away, or choose another --out")


def foreign_to(folder: Path) -> str:
    """What in `folder` qlab did not make, as its name within it; "it" where there is no manifest at all; empty where all is qlab's.

    A folder of nothing but artifacts, as a release is, is qlab's too.

    Raises:
        UserError: a manifest is damaged, or another program's.
    """
    entries = sorted(folder.iterdir())
    if not entries:
        return ""
    if not (folder / MANIFEST).exists():
        within = [(entry, foreign_to(entry) if entry.is_dir() and not entry.is_symlink() else "it") for entry in entries]
        return next((f"{entry.name}/{name}" if name != "it" else "it" for entry, name in within if name), "")
    known = {*read_note(folder / MANIFEST, Manifest).files, MANIFEST, COST}

    def foreign(entry: Path) -> bool:
        return entry.name not in known or entry.is_symlink() or entry.is_dir() or (entry.name == CARD and edited(entry))

    return next((entry.name for entry in entries if foreign(entry)), "")


def put(made: Path, folder: Path) -> None:
    """Move the whole folder `made` to `folder`, on the same disk; what qlab made there before goes once the new one is in its place.

    Whoever looks finds the old or the new, never neither, wherever the disk can exchange two folders at once (Linux's own can).

    Raises:
        UserError: as check_replaceable; nothing is moved then.
        OSError: it cannot be moved; the old one stands where it stood.
    """
    aside = folder.with_name(f".replaced-{folder.name}")
    for place in (aside, folder):
        check_replaceable(place)
    if aside.exists():  # left by a process that was killed on a disk that cannot exchange
        discard(aside)
    if not folder.exists():
        made.rename(folder)
    elif exchange(made, folder):
        discard(made)
    else:
        folder.rename(aside)
        try:
            made.rename(folder)
        except OSError:
            aside.rename(folder)
            raise
        discard(aside)


def exchange(one: Path, other: Path) -> bool:
    """Have two folders change places at once; False where this system or disk cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return rename is not None and rename(HERE, os.fsencode(one.absolute()), HERE, os.fsencode(other.absolute()), EXCHANGE) == 0
