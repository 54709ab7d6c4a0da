"""Files that users have: seen to be files, and JSON read, or refused by one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qlab.support.errors import UserError

LARGEST = 128 << 20  # bytes of a file that is read whole; the largest tokenizers take a quarter of it
DEEPEST = 64  # objects within objects; tokenizers have six
MOST, LAYERS = 1 << 26, 1000  # any size and the number of blocks in a model's configuration; the largest vocabularies have a 200th of it
POINTER, LFS = 400, b"version https://git-lfs"  # bytes of a pointer at most, and how it begins


def path_of(name: str) -> Path:
    """`name` as a path, "~" at its beginning as a home folder; as it stands where nobody has that home."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def check_regular(file: Path, most: int | None = LARGEST) -> None:
    """See that something is a regular file, or a link to one, of at most so many bytes: no folder, no pipe or device, which never end.

    Raises:
        UserError: it is not, or it only points to the file.
        OSError: it cannot be read.
    """
    shown = f"{file.parent.name}/{file.name}"
    try:
        regular = file.is_file()
        size = file.stat().st_size if regular else 0
    except (OSError, ValueError) as error:  # a loop of links; a name that no file can have
        raise UserError(f"cannot read {shown}: {getattr(error, 'strerror', None) or error}") from error
    if not regular:
        kind = "a link that leads nowhere" if file.is_symlink() and not file.exists() else "not a regular file"
        raise UserError(f"{shown} is {kind if file.is_symlink() or file.exists() else 'not there'}; expected a file")
    if 0 < size <= POINTER and file.read_bytes().startswith(LFS):  # the system's own files say 0, and may not be readable
        raise UserError(f"{shown} is a pointer of git-lfs, not the file: run 'git lfs pull' there")
    if most is not None and size > most:
        raise UserError(f"{shown} has {size / 1e6:,.0f} MB, and files of its kind at most {most / 1e6:.0f}: download or copy it again")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: it is no regular file, cannot be read, or is damaged.
    """
    check_regular(file)
    shown = f"{file.parent.name}/{file.name}"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {shown}: {error.strerror}; expected a JSON file") from error
    except ValueError as error:
        raise UserError(f"{shown} is not JSON ({error}); download or copy it again") from error
    except RecursionError as error:
        raise UserError(f"{shown} is nested too deeply; download or copy it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{shown} holds no JSON object; download or copy it again")
    if too_deep(found):
        raise UserError(f"{shown} is nested too deeply: expected at most {DEEPEST} objects within each other; download or copy it again")
    return found


def too_deep(value: Any) -> bool:
    """Whether objects and lists lie in each other more than DEEPEST times; what copies or writes them goes down by recursion."""
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
        level = [inner for inner in level if isinstance(inner, (dict, list))]
        if not level:
            return False
    return True
