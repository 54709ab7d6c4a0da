"""What every written exercise keeps to, and what a reader meets in a lesson: gaps, hints, solutions, progress."""

from __future__ import annotations

import ast
import inspect
import time
from typing import Any

import nbformat
import pytest
import torch

from qlab.support.errors import UserError
from qlab.workbook.exercises import answer, checks, saying
from qlab.workbook.exercises.checks import ASKED, WRITTEN, check_answer, check_written, hint, solution
from qlab.workbook.exercises.trial import Unwritten, fault_of
from qlab.workbook.language.spoken import VARIABLE
from qlab.workbook.reader.about import NOTEBOOKS, exercises_of, lesson_names


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    for module in (saying, checks):
        monkeypatch.setattr(module, "display", lambda output: found.append(output.data))
    monkeypatch.setattr(checks, "_hints_given", {})
    return found


@pytest.mark.parametrize("name", WRITTEN)
def test_the_solution_is_right_and_quickly_judged(name: str) -> None:
    started = time.process_time()
    assert fault_of(WRITTEN[name], WRITTEN[name].solution) is None
    assert time.process_time() - started < 2


@pytest.mark.parametrize(("name", "place"), [(name, place) for name, written in WRITTEN.items() for place in range(len(written.mistakes))])
def test_each_mistake_is_told_from_the_others(name: str, place: int) -> None:
    mistake = WRITTEN[name].mistakes[place]
    fault = fault_of(WRITTEN[name], lambda *case: mistake.way(**dict(zip(WRITTEN[name].cases()[0], case))))
    assert fault is not None
    assert fault.said == mistake.said


@pytest.mark.parametrize("name", WRITTEN)
def test_the_gap_in_the_lesson_is_a_function_of_the_solutions_arguments(name: str) -> None:
    cells = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
    (gap,) = [cell.source for cell in cells if "raise NotImplementedError" in cell.source]
    (function,) = [node for node in ast.parse(gap).body if isinstance(node, ast.FunctionDef)]
    own = WRITTEN[name].solution
    assert function.name == own.__name__
    assert [argument.arg for argument in function.args.args] == list(inspect.signature(own).parameters) == list(WRITTEN[name].cases()[0])
    space: dict[str, Any] = {"torch": torch}
    exec(compile(gap, name, "exec"), space)  # as the reader finds it, it is unwritten
    with pytest.raises(Unwritten):
        fault_of(WRITTEN[name], space[function.name])


@pytest.mark.parametrize("lesson", lesson_names())
def test_no_solution_stands_in_a_lesson(lesson: str) -> None:
    text = "".join(cell.source for cell in nbformat.read(NOTEBOOKS / f"{lesson}.ipynb", as_version=4).cells)
    body = [line.strip() for line in inspect.getsource(WRITTEN[lesson].solution).splitlines() if len(line.strip()) > 20]
    given = {line.partition("#")[0].strip() for line in text.splitlines()}
    assert sum(line.partition("#")[0].strip() not in given for line in body[2:]) >= 2


def test_every_question_is_asked_in_a_lesson() -> None:
    asked = [name for lesson in lesson_names() for name in exercises_of(nbformat.read(NOTEBOOKS / f"{lesson}.ipynb", as_version=4))]
    assert sorted(asked) == sorted([*ASKED, *WRITTEN])


def test_what_a_reader_meets(shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    right: list[str] = []
    for module in (checks, answer):
        monkeypatch.setattr(module, "keep_right", right.append)
    check_written("01_principles", None)
    assert "Not written yet" in shown[-1]
    check_written("01_principles", lambda weights, bits: weights)
    assert "nothing is rounded" in shown[-1]
    assert "The first case that fails" in shown[-1]
    assert right == []
    check_written("01_principles", WRITTEN["01_principles"].solution)
    assert "Right" in shown[-1]
    check_answer("bits a weight", 4.3125)
    assert right == ["01_principles", "bits a weight"]


def test_hints_come_one_by_one_and_the_solution_on_demand(shown: list[str]) -> None:
    hints = WRITTEN["03_gptq"].hints
    for number in range(1, len(hints) + 3):
        shown.clear()
        hint("03_gptq")
        assert len(shown) == min(number, len(hints))
    solution("03_gptq")
    assert shown[-1].startswith("```python\ndef quantize_columns(")
    assert all(WRITTEN["03_gptq"].solution.__name__ not in text for text in hints)


@pytest.mark.parametrize("call", [lambda: check_written("x", None), lambda: hint("x"), lambda: solution("x"), lambda: check_answer("x", 1)])
def test_an_unknown_exercise_is_named(call: Any) -> None:
    with pytest.raises(UserError, match="there is no exercise 'x': expected one of"):
        call()


def test_what_a_french_reader_meets(shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "fr")
    monkeypatch.setattr(checks, "keep_right", lambda name: None)
    check_written("01_principles", lambda weights, bits: weights)
    assert "rien n&#x27;est arrondi" in shown[-1]
    assert "Le premier cas qui échoue" in shown[-1]
    check_written("01_principles", lambda weights, bits: weights[:2])
    assert "Votre résultat est de forme [2] au lieu de [6]. Attendu\u00a0: les poids arrondis" in shown[-1]
    check_written("01_principles", WRITTEN["01_principles"].solution)
    assert "Juste\u00a0:" in shown[-1]
    hint("01_principles")
    assert "Indice 1 sur 4\u00a0: Trois étapes" in shown[-1]
    check_answer("GB of a 70B model", 1)
    assert "1 Go, c&#x27;est trop petit. Les poids fois les bits" in shown[-1]
