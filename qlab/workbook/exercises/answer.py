"""Checks of answers that are numbers: they say what is wrong with an answer, not what it should have been, and keep progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from qlab.support.wording import Sentence
from qlab.workbook.exercises.saying import NEUTRAL, RIGHT, WRONG, say
from qlab.workbook.language.spoken import gettext
from qlab.workbook.reader.progress import keep_right


@dataclass(frozen=True)
class Asked:
    """A question with a number for an answer.

    `expected` computes it from what the lesson hands over, `unit` is what it counts, `tolerance` is relative.
    """

    unit: str
    expected: Callable[..., float]
    hint: str
    tolerance: float = 0.02


@dataclass(frozen=True)
class AskedNames:
    """A question with some names for an answer; `wrong(names, *given)` says what is wrong with them, or nothing."""

    wrong: Callable[..., str]


def check(unit: str, answer: Any, expected: float, hint: str, tolerance: float = 0.02, name: str = "") -> None:
    """Compare a reader's `answer`, a number of `unit`, with `expected`, within a relative `tolerance`.

    `name` is the exercise's in the reader's progress, once in a lesson; without one, it is the unit.
    """
    number = as_number(answer)
    if answer is None or answer is ...:
        say_empty()
    elif number is None:
        say(WRONG, gettext(Sentence("The answer should be a number of {unit}; {answer} is none.", unit=unit, answer=repr(answer)[:80])))
    elif abs(number - expected) <= tolerance * abs(expected):
        keep_right(name or unit)
        say(RIGHT, gettext("Right."))
    else:
        text = "{number:g} {unit} is too large." if number > expected else "{number:g} {unit} is too small."
        say(WRONG, f"{gettext(Sentence(text, number=number, unit=unit))} {gettext(hint)}")


def check_names(name: str, answer: Any, wrong: Callable[[list[str]], str]) -> None:
    """Judge a reader's `answer`, a collection of names, by `wrong`; `name` is the exercise's in the reader's progress."""
    if answer is None or answer is ...:
        say_empty()
    elif isinstance(answer, str) or not hasattr(answer, "__iter__") or not all(isinstance(part, str) for part in answer):
        say(WRONG, gettext("The answer should be a list of names, each in quotes."))
    elif said := wrong(list(answer)):
        say(WRONG, said)
    else:
        keep_right(name)
        say(RIGHT, gettext("Right."))


def say_empty() -> None:
    say(NEUTRAL, gettext("Not answered yet: set the answer in the cell above and run both cells."))


def as_number(answer: Any) -> float | None:
    """A number of Python, numpy, torch or fractions as a float; None for everything else, also for NaN, truth values and texts."""
    if isinstance(answer, (bool, np.bool_, str, bytes)) or not hasattr(answer, "__float__"):
        return None
    try:
        number = float(answer.detach() if isinstance(answer, Tensor) else answer)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # of several numbers, of complex ones
        return None
    return number if math.isfinite(number) else None
