"""Lesson 7's exercise: readers' Pareto fronts, what each is told, and what is said of a wrong list of names."""

from __future__ import annotations

from typing import Any

import pytest

from qlab.workbook.exercises.front import WRITTEN, wrong_front
from qlab.workbook.exercises.trial import Unwritten, fault_of

POINTS = {"A": (4.0, 0.10), "B": (5.0, 0.02), "C": (6.0, 0.05), "D": (8.0, 0.01)}


def by_sorting(points: Any) -> set[str]:
    front, nearest = set(), float("inf")
    for name, (_, distance) in sorted(points.items(), key=lambda item: item[1]):
        if distance < nearest:
            nearest = distance
            front.add(name)
    return front


def test_a_right_one_passes_as_a_set() -> None:
    assert fault_of(WRITTEN, by_sorting) is None


def strictly(points: Any) -> list[str]:
    return [n for n, p in points.items() if not any(q[0] < p[0] and q[1] < p[1] for q in points.values())]


def itself(points: Any) -> list[str]:
    return [n for n, p in points.items() if not any(q[0] <= p[0] and q[1] <= p[1] for q in points.values())]


def turned(points: Any) -> list[str]:
    return [n for n, p in points.items() if not any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points.values())]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (strictly, "another equals in one number"),
        (itself, "Does every point beat itself"),
        (turned, "turned round"),
        (lambda points: list(points), "Every point is returned"),
        (lambda points: [min(points, key=points.get)], "Only the smallest"),
        (lambda points: [points[name] for name in by_sorting(points)], "holds a tuple"),
        (lambda points: min(points), "returns a str"),
    ],
)
def test_a_wrong_one_is_told_what_is_wrong(wrong: Any, said: str) -> None:
    fault = fault_of(WRITTEN, wrong)
    assert fault is not None
    assert said in fault.said


def test_an_empty_one_is_not_wrong() -> None:
    with pytest.raises(Unwritten):
        fault_of(WRITTEN, lambda points: None)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["A", "B", "D"], ""),
        (["D", "A", "B"], ""),
        (["A", "B", "C", "D"], "C is not on the front: B is no larger and no farther."),
        (["A", "B"], "1 name is missing"),
        ([], "3 names are missing"),
        (["a"], "a is none of the formats: A, B, C, D."),
    ],
)
def test_what_is_said_of_a_list_of_names(names: list[str], said: str) -> None:
    assert said in wrong_front(names, POINTS)
    assert bool(said) == bool(wrong_front(names, POINTS))
