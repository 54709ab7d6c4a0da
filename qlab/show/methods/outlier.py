"""Lesson 1: one weight that stands out, and the steps that the rest of its group gets with it and without it."""

from __future__ import annotations

from matplotlib.axes import Axes
from torch import Tensor

from qlab.show.drawing import FAINT, INK, PALETTE, Drawing, caption, shown, stacked
from qlab.workbook.drawn.outlier import Outlier
from qlab.workbook.language.spoken import gettext, say


def outlier_picture(found: Outlier, times: int) -> Drawing:
    """A group of weights on the values that its codes stand for, with the outlier so many times as large, and without it."""
    large = found.enlarged(times)
    which = "The outlier of {layer}" if times == 1 else "The outlier of {layer}, made {times} times as large,"
    title = "{which} makes its group's steps {wider:.1f} times as wide and the others' error {harm:.1f} times as large"
    title = say(title, which=say(which, layer=found.layer, times=times), wider=large.wider, harm=large.harm)
    figure, (beside, alone) = stacked(title, (2.2, 2.2))
    errors = large.error(large.weights), large.error(large.others)
    said = (
        say("rounded with the outlier; error of the others {error} %", error=shown(100 * errors[0])),
        say("rounded without it; error of the others {error} %", error=shown(100 * errors[1])),
    )
    draw_group(beside, large, large.weights, said[0])
    draw_group(alone, large, large.others, said[1])
    place = "weight of the group (row {row}, from input channel {channel})"
    alone.set_xlabel(say(place, row=found.row, channel=found.channel - found.place))
    figure.values = {
        gettext("outlier"): float(large.weights[large.place]),
        gettext("step with it"): large.step(large.weights), gettext("step without it"): large.step(large.others),
        gettext("error of the others with it"): errors[0], gettext("error of the others without it"): errors[1],
    }  # fmt: skip
    return figure


def draw_group(axes: Axes, found: Outlier, group: Tensor, text: str) -> None:
    """The weights, the outlier as a diamond, and a line for each value that a code of `group` stands for."""
    for level in found.levels(group).tolist():
        axes.axhline(level, color=FAINT, linewidth=1)
    weights = found.weights.tolist()
    axes.plot(range(len(weights)), weights, "o", color=INK, markersize=2.5)
    axes.plot([found.place], [weights[found.place]], "D", color=PALETTE[1], markersize=7)
    room = 0.08 * (max(weights) - min(weights))
    axes.set_ylim(min(*weights, 0) - room, max(*weights, 0) + room)
    axes.grid(visible=False)
    axes.set_ylabel(gettext("value"))
    caption(axes, text)
