"""The Pareto front: of things that cost in two ways, those that no other beats."""

from __future__ import annotations

from collections.abc import Mapping


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of the points that no other beats, by their first number: none is as small in both numbers and smaller in one."""
    front: list[str] = []
    for name in sorted(points, key=lambda name: points[name]):
        if not front or points[name][1] < points[front[-1]][1] or points[name] == points[front[-1]]:
            front.append(name)
    return front
