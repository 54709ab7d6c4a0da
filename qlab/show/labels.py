"""Names beside the points of a figure: clear of each other, of the points, and of a line that is drawn through some of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from qlab.workbook.language.spoken import gettext

MARK, CLEAR = 5.0, 2.0  # pixels: half the width of a point, and what is left between a name and anything else
ASIDE = (8, 14, 22)  # points beside the mark at which a name may begin
ALOOF = 8  # rows above and below it that are tried


def write_names(axes: Axes, points: Mapping[str, tuple[float, float]], line: Sequence[tuple[float, float]]) -> None:
    """Each name beside its point, on axes that stay as they are; `line` are the corners of a line of steps, in the data's numbers."""
    places = {name: (float(x), float(y)) for name, (x, y) in ((n, axes.transData.transform(point)) for n, point in points.items())}
    corners = [axes.transData.transform(corner) for corner in line]
    drawn = [around(*place) for place in places.values()]
    drawn += [Bbox([(min(a[0], b[0]), min(a[1], b[1])), (max(a[0], b[0]), max(a[1], b[1]))]) for a, b in pairwise(corners)]
    frame = axes.get_window_extent()
    for names in neighbours(places):
        written = " / ".join(map(gettext, names))
        label = axes.annotate(written, points[names[0]], xytext=(0, 0), textcoords="offset points", fontsize=9, va="center")
        inward = 1 if places[names[0]][0] <= frame.x0 + frame.width / 2 else -1  # towards the middle first
        for side, offset in ways(inward, label.get_window_extent().height * 72 / label.figure.dpi):
            label.set_horizontalalignment("left" if side > 0 else "right")
            label.xyann = offset
            if is_clear(label, drawn, frame):
                break
        drawn.append(label.get_window_extent())


def ways(inward: int, row: float) -> Iterator[tuple[int, tuple[float, float]]]:
    """Sides and offsets in points to try for a name, the nearest first: close beside the mark, above and below, then on its other side;
    last, where none is clear, towards the middle beside the mark."""
    for aside in ASIDE:
        for side in (inward, -inward):
            for step in range(ALOOF):
                for turn in (1, -1) if step else (1,):
                    yield side, (aside * side, turn * step * row * 0.7)
    yield inward, (ASIDE[0] * inward, 3.0)


def is_clear(label: Annotation, drawn: Sequence[Bbox], frame: Bbox) -> bool:
    """Whether a label stands within the frame and touches nothing that is drawn."""
    box = label.get_window_extent()
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    return inside and not any(box.padded(CLEAR).overlaps(other) for other in drawn)


def around(x: float, y: float) -> Bbox:
    """The box of a point's mark, in pixels."""
    return Bbox([(x - MARK, y - MARK), (x + MARK, y + MARK)])


def neighbours(places: Mapping[str, Sequence[float]], apart: float = 8) -> list[list[str]]:
    """Names grouped by place: those whose places on the picture (in pixels) are too near to be labelled singly stand together."""
    groups: list[list[str]] = []
    for name in sorted(places, key=lambda name: -places[name][1]):
        x, y = places[name]
        near = (group for group in groups if abs(places[group[0]][0] - x) < 8 * apart and abs(places[group[0]][1] - y) < apart)
        if group := next(near, None):
            group.append(name)
        else:
            groups.append([name])
    return groups
