"""Checks for exercises: they say what is wrong with an answer, not what it should have been, and keep the reader's progress."""

from __future__ import annotations

import html

from IPython.display import HTML, display

from qlab.workbook.reader.progress import keep_right


def check(unit: str, answer: float | None, expected: float, hint: str, tolerance: float = 0.02) -> None:
    """Compare a reader's `answer`, a number of `unit`, with `expected`, within a relative `tolerance`.

    `unit` also names the exercise, once in a lesson, in the reader's progress.
    """
    if answer is None:
        _say("#666", "Not answered yet: set the answer in the cell above and run both cells.")
    elif not isinstance(answer, (int, float)):
        _say("#b35900", f"The answer should be a number of {unit}; {answer!r} is none.")
    elif abs(answer - expected) <= tolerance * abs(expected):
        keep_right(unit)
        _say("#1a7f37", "Right.")
    else:
        direction = "too large" if answer > expected else "too small"
        _say("#b35900", f"{answer:g} {unit} is {direction}. {hint}")


def _say(colour: str, text: str) -> None:
    display(HTML(f'<p style="border-left:4px solid {colour};padding:4px 10px">{html.escape(text)}</p>'))
