"""Numbers of the command line: whole or real, each within bounds that its help and its error message state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import typer

from qlab.support.errors import UserError

LISTED = 20  # numbers in one option
DIGITS = 40  # of a number that are looked at; the largest bound has nineteen
WINDOWS, TOKENS, SEED = 10**6, 10**7, 2**63 - 1  # windows of text; tokens of a window, a context or a prompt; torch's seeds


@dataclass(frozen=True)
class Bounded:
    """A number from `least` to `most`, both included: whole if these are."""

    least: float
    most: float

    @property
    def range(self) -> str:
        """Such as 1 to 1,024."""
        return f"{self.least:,} to {self.most:,}" if isinstance(self.least, int) else f"{self.least:,.15g} to {self.most:,.15g}"

    @property
    def __name__(self) -> str:
        """The type's name, which the option parser asks for."""
        return f"number from {self.range}"

    def __call__(self, text: str | float) -> Any:
        """The number in `text`.

        Raises:
            typer.BadParameter: it is none, or beyond the bounds.
        """
        kind: type[int] | type[float] = int if isinstance(self.least, int) else float
        word = str(text)
        try:
            value = kind(word) if len(word) <= DIGITS else math.nan
        except ValueError:
            value = math.nan
        if not self.least <= value <= self.most:
            what = "a whole number" if kind is int else "a number"
            shown = word if len(word) <= DIGITS else f"{word[:DIGITS]}…"
            raise typer.BadParameter(f"{shown!r}: expected {what} from {self.range}")
        return value


AT_A_TIME = Bounded(1, 10_000)  # requests to a server


def whole(help: str, least: int, most: int, *names: str) -> Any:
    """An option for a whole number from `least` to `most`."""
    return _option(help, Bounded(least, most), names)


def real(help: str, least: float, most: float, *names: str) -> Any:
    """An option for a number from `least` to `most`; neither infinite nor NaN."""
    return _option(help, Bounded(float(least), float(most)), names)


def numbers_in(text: str, option: str, bounded: Bounded) -> list[int]:
    """The numbers of an option, with commas between.

    Raises:
        UserError: one is none within the bounds, or they are too many.
    """
    words = text.split(",")
    if len(words) > LISTED:
        raise UserError(f"{option} has {len(words):,} numbers: expected {LISTED} at most")
    try:
        return [bounded(word) for word in words]
    except typer.BadParameter as error:
        raise UserError(f"{option}: {error.message}, with commas between, such as 1,4,16") from error


def _option(help: str, bounded: Bounded, names: tuple[str, ...]) -> Any:
    return typer.Option(*names, parser=bounded, help=f"{help.removesuffix('.')} ({bounded.range}).")
