"""Lesson 7: which points of two costs are worth a look, the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qlab.workbook.exercises.answer import AskedNames
from qlab.workbook.exercises.trial import Case, Mistake, Names, Written
from qlab.workbook.language.spoken import ngettext, say
from qlab.workbook.pareto import pareto_front

Points = Mapping[str, tuple[float, float]]


def front_of(points: Points) -> list[str]:
    """Points by name, (size, distance), less of both is better → the names that no other point beats."""

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one[0] <= other[0] and one[1] <= other[1] and one != other

    return [name for name, point in points.items() if not any(beats(other, point) for other in points.values())]


def cases() -> list[Case]:
    """A front of three, one point, equal sizes, equal distances, a chain in which every point is beaten by the next."""
    return [
        {"points": {"A": (4.0, 0.10), "B": (5.0, 0.02), "C": (6.0, 0.05), "D": (8.0, 0.01), "E": (9.0, 0.20)}},
        {"points": {"alone": (3.0, 0.5)}},
        {"points": {"A": (3.0, 0.3), "B": (4.0, 0.2), "C": (4.0, 0.1), "D": (5.0, 0.1), "E": (6.0, 0.05)}},
        {"points": {"A": (3.0, 3.0), "B": (2.0, 2.0), "C": (1.0, 1.0)}},
        {"points": {"A": (1.0, 5.0), "B": (2.0, 4.0), "C": (3.0, 3.0), "D": (4.0, 2.0)}},
    ]


@dataclass(frozen=True)
class Left:
    """The points that none beats, by another rule of what beats."""

    beats: Callable[[tuple[float, float], tuple[float, float]], bool]

    def __call__(self, points: Points) -> list[str]:
        others = {name: [other for key, other in points.items() if key != name] for name in points}
        return [name for name, point in points.items() if not any(self.beats(other, point) for other in others[name])]


def least(points: Points, of: int) -> list[str]:
    return [min(points, key=lambda name: points[name][of])]


def wrong_front(answer: Iterable[str], points: Points) -> str:
    """What is wrong with the names given for the front of `points`; empty where nothing is."""
    found, front = set(answer), set(pareto_front(points))
    if unknown := sorted(found - set(points)):
        return say("{name} is none of the names: {all}.", name=unknown[0], all=", ".join(points))
    if beaten := sorted(found - front):
        size, distance = points[beaten[0]]
        by = next(name for name in pareto_front(points) if points[name][0] <= size and points[name][1] <= distance)
        return say("{name} is not on the front: {other} is no larger and no farther.", name=beaten[0], other=by)
    if missing := len(front - found):
        text = ngettext(
            "{count} name is missing: look for formats that no other beats in both.",
            "{count} names are missing: look for formats that no other beats in both.",
            missing,
        )
        return text.format(count=missing)
    return ""


def differs(case: Case, found: frozenset[str], expected: Any) -> str:
    return wrong_front(found, case["points"])


WRITTEN = Written(
    solution=front_of,
    expected=pareto_front,
    cases=cases,
    form=Names("the names of the points on the front, in a list or a set"),
    mistakes=(
        Mistake(
            lambda points: points, "Every point is returned. Leave out a point if another is no worse in both numbers and better in one."
        ),
        Mistake(
            Left(lambda one, other: one[0] < other[0] and one[1] < other[1]),
            "A point stays that another equals in one number and beats in the other. It is beaten: nobody would take it.",
        ),
        Mistake(
            Left(lambda one, other: one[0] >= other[0] and one[1] >= other[1] and one != other),
            "The comparison is turned round: these are the worst points. Less is better in both numbers.",
        ),
        Mistake(
            Left(lambda one, other: one[0] < other[0] or one[1] < other[1]),
            "A point is left out as soon as another is better in one number. It is beaten only where another is no worse in both.",
        ),
        Mistake(
            lambda points: least(points, 0),
            "Only the smallest is returned. A larger point stays on the front if it is nearer than all smaller ones.",
        ),
        Mistake(
            lambda points: least(points, 1),
            "Only the nearest is returned. A point that is farther stays on the front if it is smaller than all nearer ones.",
        ),
        Mistake(
            lambda points: [*least(points, 0), *least(points, 1)],
            "Only the two ends are returned. What lies between them stays too, where nothing beats it.",
        ),
        Mistake(
            lambda points: [name for name in points if name not in pareto_front(points)],
            "These are the points that are beaten. Return the others.",
        ),
        Mistake(
            lambda points: [],
            "No point is left. Does every point beat itself? A point is beaten only by one that is better in at least one number.",
        ),
    ),
    differs=differs,
    hints=(
        "Write first when one point beats another: it is no worse in both numbers, and better in at least one.",
        "A name is on the front if no point beats its point. `any(…)` over all points says whether one does.",
        "A point must not beat itself: equal points do not beat each other.",
    ),
)


ASKED = {"the front of your model": AskedNames(wrong_front)}
