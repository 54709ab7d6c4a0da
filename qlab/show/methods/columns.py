"""Lesson 3: one step of GPTQ's walk over the columns: what is rounded, what its error moves, and what is gained so far."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from qlab.show.drawing import INK, MUTED, PALETTE, Drawing, caption, stacked
from qlab.workbook.drawn.columns import Columns
from qlab.workbook.language.spoken import gettext, say

POSITIVE, NEGATIVE = PALETTE[0], PALETTE[1]


def column_picture(walk: Columns, column: int) -> Drawing:
    """The walk over a small matrix as it stands once `column`, counted from 1, is rounded."""
    here, count = column - 1, walk.count
    errors = walk.output_errors
    with_it, without = errors[here]
    updates = walk.updates(here)
    title = "Column {column} of {all}, its error moves the {left} to come; output error so far: {share:.0%} of plain rounding's"
    if column == count:
        title = "Column {column} of {all}, the last, whose error nothing takes over; output error so far: {share:.0%} of plain rounding's"
    title = say(title, column=column, all=count, left=count - column, share=with_it / max(without, 1e-30))
    figure, (weights, moves, curve) = stacked(title, (2.9, 2.8, 1.8))
    draw_weights(weights, walk, here)
    draw_moves(moves, walk, here, updates)
    for place, (name, colour) in enumerate({"GPTQ": POSITIVE, gettext("plain rounding"): MUTED}.items()):
        curve.plot(range(1, count + 1), [100 * pair[place] for pair in errors], color=colour, linewidth=1)
        curve.plot(range(1, column + 1), [100 * pair[place] for pair in errors[:column]], color=colour, linewidth=3, label=name)
    curve.axvline(column, color=INK, linewidth=1)
    curve.set_ylim(bottom=0)
    curve.legend(fontsize=9, loc="upper left")
    curve.set_xlabel(gettext("column, in the order of rounding"))
    curve.set_ylabel(gettext("output error, %"))
    figure.values = {
        gettext("output error, GPTQ"): with_it, gettext("output error, plain rounding"): without,
        gettext("mean |error| of the column"): float(walk.error(here).abs().mean()), gettext("largest update"): float(updates.abs().max()),
    }  # fmt: skip
    return figure


def draw_weights(axes: Axes, walk: Columns, here: int) -> None:
    """The matrix: done, the column at hand with its codes, and to come."""
    standing = walk.standing(here)
    reach = float(walk.weight.abs().max())
    standing[:, here] = 0  # in the place of whose colour the codes stand
    tiles(axes, standing, reach)
    for row, code in enumerate(walk.codes[:, here].tolist(), 1):
        axes.text(here + 1, row, str(code), ha="center", va="center", fontsize=9)
    axes.axvline(here + 0.5, color=INK, linewidth=1)
    axes.axvline(here + 1.5, color=INK, linewidth=1)
    caption(axes, say("left: rounded; framed: codes; right: to come; full colour: ±{reach:.2g}", reach=reach))


def draw_moves(axes: Axes, walk: Columns, here: int, updates: Tensor) -> None:
    """The error of the column at hand, and what it adds to each column to come."""
    moves = updates.clone()
    moves[:, here] = walk.error(here)
    reach = float(updates.abs().max()) or float(moves.abs().max())
    tiles(axes, moves, reach)
    axes.axvline(here + 0.5, color=INK, linewidth=1)
    axes.axvline(here + 1.5, color=INK, linewidth=1)
    caption(axes, say("framed: error; right: what it adds; full colour: ±{reach:.2g} and more", reach=reach))


def tiles(axes: Axes, values: Tensor, reach: float) -> None:
    """A matrix as tiles, one colour a sign; the nearer to 0, the more of the page shines through."""
    rows, columns = values.shape
    fill = np.array([[int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)] for colour in (NEGATIVE, POSITIVE)])
    colours = fill[(values.numpy() > 0).astype(int)]
    shares = (values.abs() / max(reach, 1e-30)).clamp(max=1).numpy()
    picture = np.concatenate([colours, shares[..., None]], axis=-1)
    axes.imshow(picture, interpolation="none", aspect="auto", extent=(0.5, columns + 0.5, rows + 0.5, 0.5))
    axes.grid(visible=False)
    axes.set_ylabel(gettext("output"))
    axes.set_yticks(range(1, rows + 1, 4))
