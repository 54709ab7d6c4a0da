"""Lesson 1: one channel that stands out, and the steps that the rest of its group gets with it and without it."""

from __future__ import annotations

from matplotlib.axes import Axes
from torch import Tensor

from qlab.show.drawing import FAINT, INK, PALETTE, Drawing, caption, stacked
from qlab.workbook.drawn.outlier import Outlier


def outlier_picture(layer: str, found: Outlier) -> Drawing:
    """A group of weights on the values that its codes stand for: those with the outlier, and those without it."""
    others = len(found.weights) - 1
    channel = f"one channel, {found.times:.1f} times its group's median"
    title = f"{layer}: {channel}, makes the error of the other {others} {found.harm:.1f} times as large"
    figure, (beside, alone) = stacked(title, (2.6, 2.4))
    draw_group(
        beside, found, found.levels_with, f"rounded with channel {found.channel}; error of the others {100 * found.error_with:.2g} %"
    )
    draw_group(alone, found, found.levels_without, f"rounded without it; error of the others {100 * found.error_without:.2g} %")
    alone.set_xlabel("weight of the group")
    figure.values = {
        "channel": found.channel, "times the median": found.times,
        "error of the others with it": found.error_with, "error of the others without it": found.error_without,
    }  # fmt: skip
    return figure


def draw_group(axes: Axes, found: Outlier, levels: Tensor, text: str) -> None:
    """The group's weights in one row, the outlier in its colour, and a line for each value that a code stands for."""
    for level in levels.tolist():
        axes.axhline(level, color=FAINT, linewidth=1)
    weights = found.weights.tolist()
    axes.plot(range(len(weights)), weights, "o", color=INK, markersize=2.5)
    axes.plot([found.place], [weights[found.place]], "D", color=PALETTE[1], markersize=7)
    room = 0.08 * (max(weights) - min(weights))
    axes.set_ylim(min(*weights, 0) - room, max(*weights, 0) + room)
    axes.grid(visible=False)
    axes.set_ylabel(f"value, row {found.row}")
    caption(axes, text)
