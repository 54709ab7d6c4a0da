"""Lesson 3: GPTQ's walk in three orders of the columns, side by side: which are rounded, and what that costs so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from qlab.show.drawing import INK, MUTED, PALETTE, Drawing, caption, shown, stacked
from qlab.workbook.drawn.order import GIVEN, LARGEST, SMALLEST, Ordered
from qlab.workbook.language.spoken import gettext, say

POINTS = 64  # of a curve
FLOOR = 1e-3  # of a channel's size: what is smaller is drawn so
COLOURS = {LARGEST: PALETTE[0], GIVEN: MUTED, SMALLEST: PALETTE[1]}


def order_picture(layer: str, found: Ordered, percent: int) -> Drawing:
    """The three walks over a layer as they stand once `percent` of the columns are rounded."""
    columns = len(found.sizes)
    done = max(1, round(columns * percent / 100))
    errors = {name: float(order.so_far[done - 1]) for name, order in found.orders.items()}
    title = finding(layer, found, percent, errors)
    figure, (sizes, strips, curves) = stacked(title, (1.1, 1.1, 2.2), shared=False)
    falling = found.sizes.sort(descending=True).values.clamp(min=FLOOR).tolist()
    drawn = some(columns)
    sizes.fill_between([place + 1 for place in drawn], [falling[place] for place in drawn], color=MUTED)
    sizes.set_xlim(0.5, columns + 0.5)
    sizes.set_yscale("log")
    sizes.yaxis.set_major_formatter("{x:g}")  # the exponents of powers are too small to be read
    sizes.yaxis.set_minor_formatter(NullFormatter())
    sizes.set_ylabel(gettext("size"))
    caption(sizes, gettext("size of each input channel, in means of H's diagonal"))
    draw_strips(strips, found, done)
    draw_curves(curves, found, done)
    figure.values = {say("damped output error, {order}", order=named(name)): error for name, error in errors.items()}
    return figure


def finding(layer: str, found: Ordered, percent: int, errors: Mapping[str, float]) -> str:
    """What the walks have come to, with their `errors` so far; of a layer of more channels than are drawn it says how many are."""
    columns = len(found.sizes)
    which = say("{layer}, {columns:,} of its {all:,} columns", columns=columns, layer=layer, all=found.channels)
    if columns == found.channels:
        which = say("{layer}, all {columns:,} columns", columns=columns, layer=layer)
    values: dict[str, Any] = {"which": which, "percent": percent, "gain": found.gain}
    values |= {"largest": shown(100 * errors[LARGEST]), "given": shown(100 * errors[GIVEN])}
    if max(1, round(columns * percent / 100)) < columns:
        text = "{which}, {percent} % rounded: damped output error so far {largest} % with the largest inputs first, {given} % as they stand"
    elif found.gain <= 1:
        text = "{which}, rounded: the largest inputs first leave {gain:.0%} of the damped output error that they leave as they stand"
    else:
        text = "{which}, rounded: the largest inputs first do not help, {gain:.0%} of the damped output error that they leave as they stand"
    return say(text, **values)


def named(order: str) -> str:
    """An order's name, in the language that is spoken."""
    return {
        LARGEST: gettext("largest inputs first"),
        GIVEN: gettext("as they stand"),
        SMALLEST: gettext("smallest first (control)"),
    }[order]


def draw_strips(axes: Axes, found: Ordered, done: int) -> None:
    """A line an order, with a colour where a channel is rounded already."""
    columns = len(found.sizes)
    for row, (name, colour) in enumerate(COLOURS.items()):
        fill = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        shares = found.rounded(name, done).numpy().astype(float)[None]
        picture = np.concatenate([np.broadcast_to(fill, (1, columns, 3)), shares[..., None]], axis=-1)
        axes.imshow(picture, interpolation="none", aspect="auto", extent=(0.5, columns + 0.5, row + 0.9, row + 0.1))
    axes.set_ylim(len(COLOURS), 0)
    axes.set_xlim(0.5, columns + 0.5)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_xlabel(gettext("input channel, the largest on the left"))
    caption(axes, gettext("coloured: rounded already; a line an order, see the legend"))


def draw_curves(axes: Axes, found: Ordered, done: int) -> None:
    """The output error over the columns rounded, thick as far as the walk has come."""
    columns = len(found.sizes)
    for name, colour in COLOURS.items():
        errors = (100 * found.orders[name].so_far).tolist()
        for end, width, label in ((columns, 1, None), (done, 3, named(name))):
            drawn = some(end)
            shares = [100 * (place + 1) / columns for place in drawn]
            axes.plot(shares, [errors[place] for place in drawn], color=colour, linewidth=width, label=label)
    axes.axvline(100 * done / columns, color=INK, linewidth=1)
    axes.set_xlim(0, 101)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=9, loc="upper left")
    axes.set_xlabel(gettext("columns rounded, %"))
    axes.set_ylabel(gettext("output error by damped H, %"))


def some(count: int) -> list[int]:
    """At most POINTS of so many places, the first and the last among them: a page holds many of these pictures."""
    return sorted({round(place * (count - 1) / (POINTS - 1)) for place in range(POINTS)})
