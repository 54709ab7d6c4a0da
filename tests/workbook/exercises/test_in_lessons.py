"""Every exercise by the cell of its lesson that judges it: empty, wrong and right answers get what they should."""

from __future__ import annotations

import ast
from typing import Any

import nbformat
import pytest
import torch

from qlab.plan.plan import SHAPES
from qlab.workbook.exercises import answer, checks, saying
from qlab.workbook.exercises.answer import Asked
from qlab.workbook.exercises.checks import ASKED, WRITTEN
from qlab.workbook.exercises.saying import NEUTRAL, RIGHT, WRONG
from qlab.workbook.language.spoken import VARIABLE
from qlab.workbook.pareto import pareto_front
from qlab.workbook.reader.about import NOTEBOOKS, called, lesson_names

GENERATOR = torch.Generator().manual_seed(6)
WEIGHT = torch.randn(64, 128, generator=GENERATOR)
INPUTS = torch.randn(200, 128, generator=GENERATOR) * torch.linspace(1, 20, 128)


class Seen:
    magnitude, hessian = INPUTS.abs().mean(0), INPUTS.T @ INPUTS


class Opened:
    group_size = 64


POINTS = {"A": (4.0, 0.1), "B": (5.0, 0.2), "C": (6.0, 0.05)}
# What the cells before have made, by the names that the judging cells use.
LESSON = {
    "lesson": Opened, "means": {"RTN": 3.0, "GPTQ": 1.5}, "weight": WEIGHT, "hessian": Seen.hessian, "seen": Seen, "group": 64,
    "weights": torch.randn(256, generator=GENERATOR), "shape": SHAPES["Qwen2.5-7B"], "context": 1024, "points": POINTS,
}  # fmt: skip


def judging_cells() -> dict[str, tuple[str, str]]:
    """{exercise: (its lesson, the cell that judges it)}."""
    found = {}
    for lesson in lesson_names():
        for cell in nbformat.read(NOTEBOOKS / f"{lesson}.ipynb", as_version=4).cells:
            for node in ast.walk(ast.parse(cell.source)) if cell.cell_type == "code" else ():
                if isinstance(node, ast.Call) and called(node) in ("check_answer", "check_written"):
                    found[ast.literal_eval(node.args[0])] = lesson, cell.source
    return found


CELLS = judging_cells()


@pytest.fixture
def verdict(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the cell of an exercise shows, and whether it counts as solved, with `values` beside what the lesson has."""
    monkeypatch.setenv(VARIABLE, "en")

    def judged(exercise: str, **values: Any) -> tuple[str, bool]:
        shown, right = list[str](), list[str]()
        monkeypatch.setattr(saying, "display", lambda output: shown.append(output.data))
        for module in (checks, answer):
            monkeypatch.setattr(module, "keep_right", right.append)
        exec(compile(CELLS[exercise][1], exercise, "exec"), {"exercise": checks, **LESSON, **values})
        (text,) = shown
        assert right in ([], [exercise])
        return text, bool(right)

    return judged


def expected_of(exercise: str) -> Any:
    """The right answer, by what the judging cell hands over."""
    asked = ASKED[exercise]
    if not isinstance(asked, Asked):
        return list(pareto_front(POINTS))
    (call,) = [node for node in ast.walk(ast.parse(CELLS[exercise][1])) if isinstance(node, ast.Call) and called(node) == "check_answer"]
    return asked.expected(*(eval(ast.unparse(given), dict(LESSON)) for given in call.args[2:]))


def test_every_exercise_is_judged_in_a_lesson() -> None:
    assert set(CELLS) == set(ASKED) | set(WRITTEN)


@pytest.mark.parametrize("exercise", ASKED)
def test_an_answer(exercise: str, verdict: Any) -> None:
    expected = expected_of(exercise)
    names = isinstance(expected, list)
    assert verdict(exercise, answer=None)[0].count("Not answered yet") == 1
    wrong = [["nothing"], expected[:-1], "A"] if names else [1.5 * expected, 0.5 * expected, -expected, "many", True]
    for given in wrong:
        text, right = verdict(exercise, answer=given)
        assert WRONG in text, given
        assert not right
    good = [expected, tuple(reversed(expected))] if names else [expected, torch.tensor(expected)]
    for given in good:
        text, right = verdict(exercise, answer=given)
        assert RIGHT in text, text
        assert right


@pytest.mark.parametrize("exercise", WRITTEN)
def test_a_function(exercise: str, verdict: Any) -> None:
    written = WRITTEN[exercise]
    name = written.solution.__name__

    def nothing(*_: Any) -> None: ...

    def fails(*_: Any) -> Any:
        return [][1]

    def mistaken(*case: Any) -> Any:
        return written.mistakes[0].way(**dict(zip(written.cases()[0], case)))

    for function, colour, said in (
        (nothing, NEUTRAL, "Not written yet"), (fails, WRONG, "Your function stops with IndexError"), (mistaken, WRONG, "The first case"),
    ):  # fmt: skip
        text, right = verdict(exercise, **{name: function})
        assert colour in text
        assert said in text
        assert not right
    text, right = verdict(exercise, **{name: written.solution})
    assert RIGHT in text
    assert right
