"""Figures, drawn with seaborn from plain results. Each returns a drawing and displays nothing itself."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

import pandas as pd
import seaborn as sns
from matplotlib.ticker import LogLocator

from qlab.show.drawing import ACCENT, INK, MUTED, NAMED, PALETTE, Drawing, new_axes, panels, shown
from qlab.show.labels import write_names
from qlab.workbook.language.spoken import gettext, say
from qlab.workbook.pareto import pareto_front

MOST = 8  # numbers of a line that its table says


def bars(
    values: Mapping[str, float], title: str, label: str, errors: Mapping[str, float] | None = None, highlight: str = "", log: bool = False,
    marks: Mapping[str, float] | None = None,
) -> Drawing:  # fmt: skip
    """Horizontal bars, one a name, the value written at its end; a stroke at each of `marks`, such as a ceiling. On a logarithmic axis,
    which has no zero, a bar's length would mean nothing: there each value is a point."""
    figure, axes = new_axes(title, label, "", (8, 0.9 + 0.42 * len(values)))
    names = list(values)
    colours = [ACCENT if not highlight or name == highlight else MUTED for name in names]
    spread = [errors[name] for name in names] if errors else None
    if log:
        axes.set_xscale("log")
        for position, (name, colour) in enumerate(zip(names, colours, strict=True)):
            axes.errorbar(values[name], position, xerr=spread[position] if spread else None, fmt="o", color=colour, elinewidth=1)
        axes.set_yticks(range(len(names)), [gettext(name) for name in names])
        axes.margins(y=0.5 / len(names))
    else:
        axes.barh([gettext(name) for name in names], list(values.values()), xerr=spread, color=colours, error_kw={"elinewidth": 1})
    axes.invert_yaxis()
    for position, name in enumerate(names):
        if marks and name in marks:
            axes.plot([marks[name]] * 2, [position - 0.4, position + 0.4], color=INK, linewidth=2)
        end = (values[name] + (spread[position] if spread else 0), position)
        axes.annotate(shown(values[name]), end, textcoords="offset points", xytext=(7 if log else 4, 0), va="center", fontsize=9)
    axes.margins(x=0.14)
    axes.grid(visible=log, axis="y")
    figure.values = dict(values)
    return figure


def grouped_bars(table: pd.DataFrame, x: str, y: str, hue: str, title: str, label: str, log: bool = False) -> Drawing:
    """Vertical bars of a tidy table, coloured by `hue`; on a logarithmic axis points, as in `bars`."""
    figure, axes = new_axes(title, "", label, (9.5, 4.2))
    palette = colours(table[hue].nunique())
    if log:
        sns.stripplot(table, x=x, y=y, hue=hue, ax=axes, palette=palette, jitter=False, size=6)
        axes.set_yscale("log")
        axes.grid(visible=True, axis="x")
    else:
        sns.barplot(table, x=x, y=y, hue=hue, ax=axes, palette=palette, errorbar=None)
    axes.tick_params(axis="x", rotation=60 if table[x].nunique() > 8 else 0, labelsize=8)
    if legend := axes.get_legend():
        legend.remove()
    # Beneath the axes, outside: the layout then makes room for it, however many rows it and the labels take.
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, fontsize=9, loc="outside lower left", ncols=3, frameon=False)
    axes.set_xlabel("")
    figure.values = {f"{row[x]}, {row[hue]}": row[y] for _, row in table.iterrows()}
    return figure


def colours(count: int) -> list[str] | str:
    """Colours for `count` series; more than the palette has come from a scale of one hue after another."""
    return PALETTE[:count] if count <= len(PALETTE) else "husl"


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], title: str, x: str, y: str, log_x: bool = False, log_y: bool = False,
    apart: Collection[str] = (), from_zero: bool = False,
) -> Drawing:  # fmt: skip
    """One line a name through its (x, y) points; of the names `apart`, between whose points there is nothing, the points alone. With
    `from_zero` y begins there, so that heights are in proportion."""
    figure, axes = new_axes(title, x, y)
    for (name, points), colour in zip(series.items(), sns.color_palette(colours(len(series)), len(series)), strict=True):
        line, size = ("none", 7) if name in apart else ("-", 4)
        axes.plot(*zip(*points, strict=True), marker="o", markersize=size, linestyle=line, label=name, color=colour)
    if log_x:
        axes.set_xscale("log")
        measured = sorted({px for points in series.values() for px, _ in points})
        if len(measured) <= MOST:  # the values themselves, in place of powers of ten
            axes.set_xticks(measured, [f"{px:g}" for px in measured])
            axes.minorticks_off()
    if log_y:
        axes.set_yscale("log")
    if from_zero:
        axes.set_ylim(bottom=0)
    if len(series) > 1:
        axes.legend(fontsize=9)
    figure.values = {
        say("{name} at {x} {px:g}", name=name, x=x, px=px) if len(series) > 1 else f"{gettext(x)} {px:g}": py
        for name, points in series.items()
        for px, py in few(points)
    }
    return figure


def few(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `MOST` of the points: the first, the last, and of those between them every so many."""
    return [points[round(place * (len(points) - 1) / (MOST - 1))] for place in range(MOST)] if len(points) > MOST else list(points)


def points(table: pd.DataFrame, x: str, y: str, hue: str, columns: str, title: str, labels: tuple[str, str]) -> Drawing:
    """A tidy table as points, coloured by `hue`, one panel for each value of `columns`; x is logarithmic, y = 0 is drawn."""
    groups = list(table.groupby(columns, sort=False))
    figure, every = panels(title, len(groups), (4.4 * len(groups) + 1, 4.4))
    for axes, (name, group) in zip(every, groups, strict=True):
        sns.scatterplot(
            group, x=x, y=y, hue=hue, style=hue, s=70, ax=axes, palette=colours(table[hue].nunique()), legend=axes is every[-1], linewidth=0
        )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.axhline(0, color=INK)
        axes.set(title=gettext(str(name)), xlabel=labels[0], ylabel=labels[1])
    sns.move_legend(every[-1], "upper left", bbox_to_anchor=(1, 1))
    means = table.groupby([hue, columns], sort=False)[y].mean()
    figure.values = {say("mean of {way}, {panel}", way=way, panel=name): found for (way, name), found in means.items()}
    return figure


def scatter(
    points: Mapping[str, tuple[float, float]], title: str, x: str, y: str, log_y: bool = False, log_x: bool = False,
    unranked: Collection[str] = (),
) -> Drawing:  # fmt: skip
    """Named points, each written beside its mark; the Pareto front (less of both is better) drawn through, past those that are
    `unranked`, whose marks are hollow."""
    figure, axes = new_axes(title, x, y, (9, 4.6))
    front = pareto_front({name: point for name, point in points.items() if name not in unranked})
    line = corners([points[name] for name in front])
    if line:
        axes.plot(*zip(*line, strict=True), color=MUTED, linestyle="--", zorder=1)
    if log_y:
        axes.set_yscale("log")
        axes.set_ylabel(say("{label}, log scale", label=y))
    if log_x:
        axes.set_xscale("log")
        axes.set_xlabel(say("{label}, log scale", label=x))
    for name, (px, py) in points.items():
        axes.scatter(px, py, edgecolors=ACCENT, facecolors="none" if name in unranked else ACCENT, zorder=2)
    axes.margins(x=0.12, y=0.15)
    figure.draw_without_rendering()  # from here on the axes stay, so that places on the picture can be compared
    figure.set_layout_engine("none")
    write_names(axes, points, line)
    figure.values = {f"{name} ({gettext(x)}, {gettext(y)})": f"{px:.3g}, {py:.3g}" for name, (px, py) in points.items()}
    return figure


def corners(front: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of the steps through the points of a front: from each along its height to below the next."""
    between = [(after[0], before[1]) for before, after in pairwise(front)]
    return [corner for pair in zip(front, between) for corner in pair] + list(front[-1:])


def histogram(values: Sequence[float], levels: Mapping[str, Sequence[float]], title: str, x: str) -> Drawing:
    """How `values` are distributed, with each named set of levels as a row of marks below."""
    figure, axes = new_axes(title, x, gettext("density"))
    sns.histplot(x=list(values), stat="density", bins=80, color=MUTED, ax=axes, edgecolor=None)
    for row, ((name, marks), colour) in enumerate(zip(levels.items(), PALETTE, strict=False)):
        height = -0.06 * (row + 1) * axes.get_ylim()[1]
        axes.plot(marks, [height] * len(marks), "|", color=colour, markersize=14, markeredgewidth=2, label=name)
    axes.legend(fontsize=9)
    axes.set_ylabel(gettext("density"))
    tenths = statistics.quantiles(values, n=10)
    figure.values = {say("{share} % are below", share=share): tenths[place] for share, place in ((10, 0), (50, 4), (90, 8))}
    return figure


def heatmap(table: pd.DataFrame, title: str, label: str) -> Drawing:
    """A matrix of numbers as colours, each written in its field. Of a large one the figure's numbers are the means of the columns."""
    small = table.size <= NAMED
    figure, axes = new_axes(title, "", "", (8.5, 0.8 + 0.36 * len(table)))
    sns.heatmap(
        table, ax=axes, cmap="viridis", annot=True, fmt=".3g" if small else ".2g", cbar_kws={"label": label}, annot_kws={"fontsize": 8}
    )
    axes.tick_params(axis="both", labelsize=8, rotation=0)
    axes.set(xlabel=table.columns.name, ylabel=table.index.name)
    figure.axes[-1].collections[-1].set_rasterized(True)  # the scale of colours: else a path for each of 256
    axis = str(table.columns.name or "column")
    if small:
        rows, columns = gettext(str(table.index.name or "row")), gettext(axis)
        figure.values = {f"{rows} {row}, {columns} {name}": float(table.loc[row, name]) for row in table.index for name in table.columns}
    else:
        figure.values = {say("mean of {axis} {name}", axis=axis, name=name): found for name, found in table.mean().items()}
    return figure
