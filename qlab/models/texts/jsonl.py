"""Files of UTF-8 text and of JSON lines, read so that whatever is wrong with them is one sentence with the line's number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlab.support.errors import UserError
from qlab.support.reading import check_regular


def read_utf8(path: Path) -> str:
    """The text of a UTF-8 file, every line ended by a newline alone (CRLF is read as one), without a byte order mark.

    Raises:
        UserError: it is no regular file, cannot be read, or is not UTF-8.
    """
    check_regular(path, most=None)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not UTF-8 text ({error}); convert it first") from error
    except OSError as error:
        raise UserError(f"cannot read {path.name}: {error.strerror}; expected a file of UTF-8 text") from error


def json_lines(text: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The object on each line of `text`, with its place, such as "chat.jsonl, line 3". Blank lines are passed over.

    Raises:
        UserError: a line holds no JSON object.
    """
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: strings may hold U+2028 and its like
        if line.strip():
            yield f"{name}, line {number}", json_object(line, f"{name}, line {number}")


def json_object(line: str, where: str) -> dict[str, Any]:
    """The JSON object that `line` holds.

    Raises:
        UserError: it holds none, or one nested deeper than Python reads.
    """
    try:
        found = json.loads(line)
    except RecursionError as error:
        raise UserError(f"{where}: the JSON is nested too deeply to be read") from error
    except ValueError as error:
        raise UserError(f"{where}: expected a JSON object ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(found).__name__}")
    return found


def string_of(record: dict[str, Any], key: str, where: str) -> str:
    """The text that stands under `key`.

    Raises:
        UserError: there is nothing, something else than text, or text that no UTF-8 file can hold.
    """
    value = record.get(key)
    if not isinstance(value, str):
        raise UserError(f"{where}: expected text under {key!r}, found {'nothing' if value is None else type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {key!r} holds half of a surrogate pair (\\ud800 to \\udfff), which is no character") from error
    return value
