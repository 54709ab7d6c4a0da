"""What lessons call: `check_written` tries a reader's function, `hint` and `solution` help with it, `check_answer` judges an answer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from IPython.display import Markdown, display

from qlab.support.errors import UserError
from qlab.support.wording import Sentence, listed
from qlab.workbook.exercises import awq, cache, front, gptq, nf4, rounding, superblock
from qlab.workbook.exercises.answer import Asked, AskedNames, check, check_names
from qlab.workbook.exercises.saying import NEUTRAL, RIGHT, WRONG, say
from qlab.workbook.exercises.trial import Unwritten, Written, fault_of
from qlab.workbook.language.spoken import gettext
from qlab.workbook.reader.progress import keep_right

WRITTEN: Mapping[str, Written] = {
    "01_principles": rounding.WRITTEN, "02_awq": awq.WRITTEN, "03_gptq": gptq.WRITTEN, "04_gguf": superblock.WRITTEN,
    "05_nf4": nf4.WRITTEN, "06_deployment": cache.WRITTEN, "07_benchmarks": front.WRITTEN,
}  # fmt: skip
ASKED: Mapping[str, Asked | AskedNames] = {
    name: asked for lesson in (rounding, awq, gptq, superblock, nf4, cache, front) for name, asked in lesson.ASKED.items()
}
Kind = TypeVar("Kind")
_hints_given: dict[str, int] = {}


def check_written(name: str, function: Any) -> None:
    """Try the `function` that a reader wrote for exercise `name`, a key of WRITTEN, beside qlab's own, and say what is wrong with it.

    Raises:
        UserError: there is no such exercise.
    """
    written = named(name, WRITTEN)
    try:
        fault = fault_of(written, function)
    except Unwritten:
        say(NEUTRAL, gettext("Not written yet: replace the line “raise NotImplementedError” with your own, then run both cells."))
        return
    if fault:
        say(WRONG, fault.said, fault.case)
    else:
        keep_right(name)
        text = "Right: it does what qlab's own function does in all {count} cases."
        say(RIGHT, gettext(Sentence(text, count=len(written.cases()))))


def hint(name: str) -> None:
    """Show the hints of exercise `name` so far given, and one more.

    Raises:
        UserError: there is no such exercise.
    """
    hints = named(name, WRITTEN).hints
    _hints_given[name] = min(_hints_given.get(name, 0) + 1, len(hints))
    for number, text in enumerate(hints[: _hints_given[name]], 1):
        place = gettext(Sentence("Hint {number} of {all}:", number=number, all=len(hints)))
        say(NEUTRAL, f"{place} {gettext(text)}")


def solution(name: str) -> None:
    """Show one way to write the function of exercise `name`.

    Raises:
        UserError: there is no such exercise.
    """
    display(Markdown(f"```python\n{inspect.getsource(named(name, WRITTEN).solution)}```"))


def check_answer(name: str, answer: Any, *given: Any) -> None:
    """Judge a reader's `answer` to question `name`, a key of ASKED; `given` is what the lesson hands over to compute it from.

    Raises:
        UserError: there is no such question.
    """
    asked = named(name, ASKED)
    if isinstance(asked, Asked):
        check(asked.unit, answer, asked.expected(*given), asked.hint, asked.tolerance, name)
    else:
        check_names(name, answer, lambda names: asked.wrong(names, *given))


def named(name: str, every: Mapping[str, Kind]) -> Kind:
    """The exercise of this name."""
    if name not in every:
        raise UserError(f"there is no exercise {name!r}: expected one of {listed(list(every))}")
    return every[name]
