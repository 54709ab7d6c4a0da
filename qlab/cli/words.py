"""Words for a terminal: whatever a name or a file's content holds, it is shown, not obeyed, and takes a few lines at most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from qlab.serve.load import Level

WIDTH, LINES, WHOLE = 600, 30, 2400  # characters of a line, lines and characters of a message that are shown


def readable(message: str) -> str:
    """A message without control characters, its longest lines and its end left out."""
    lines = [printable(line) for line in message.split("\n")]
    lines = [line if len(line) <= WIDTH else f"{line[: WIDTH - 100]} […] {line[-90:]}" for line in lines]
    shown = "\n".join(lines if len(lines) <= LINES else [*lines[: LINES // 2], "[…]", *lines[-LINES // 2 :]])
    return shown if len(shown) <= WHOLE else f"{shown[: WHOLE // 2]}\n[…]\n{shown[-WHOLE // 2 :]}"


def printable(text: str) -> str:
    """A line in which characters that steer a terminal, and what is no text, are written as escapes."""
    return "".join(
        character if character.isprintable() or character == "\t" else character.encode("unicode_escape").decode() for character in text
    )


def failures(levels: Sequence[Level]) -> list[str]:
    """The answers that were lost or wrong, level by level, in words; with a prompt longer than the context a server answers nothing."""
    said = []
    for level in levels:
        where = f"{level.concurrency} at a time"
        said += [f"{where}: lost {count} {readable(kind)}" for kind, count in level.errors.items()]
        said += [f"{where}: {level.wrong} wrong"] if level.wrong else []
    return said


def table(columns: Iterable[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> Table:
    """A table whose cells are text as it stands, without markup; a cell that is a Text already keeps its colours."""
    made = Table(title=title, title_justify="left")
    for column in columns:
        made.add_column(Text(printable(column)))
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(printable(str(cell))) for cell in row))
    return made


def show(made: Table, width: int | None = None) -> None:
    """Print a table on standard output; `width` where that is no terminal."""
    terminal = Console()
    Console(width=terminal.width if terminal.is_terminal or width is None else width).print(made)


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of text under their columns, as lines: of thousands of rows, for which a table that fits itself to a terminal takes too long."""
    lines = [tuple(map(printable, row)) for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
