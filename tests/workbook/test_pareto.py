"""The Pareto front, as its definition has it."""

from __future__ import annotations

import random

from qlab.workbook.pareto import pareto_front


def test_the_front_is_what_no_other_beats() -> None:
    drawn = random.Random(0)
    for count in range(1, 12):
        points = {f"p{n}": (float(drawn.randint(0, 4)), float(drawn.randint(0, 4))) for n in range(count)}
        unbeaten = {n for n, p in points.items() if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points.values())}
        front = pareto_front(points)
        assert set(front) == unbeaten
        assert len(front) == len(unbeaten)
        assert [points[name][0] for name in front] == sorted(points[name][0] for name in front)
