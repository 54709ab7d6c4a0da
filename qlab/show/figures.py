"""Figures, drawn with seaborn from plain results. Each returns a matplotlib figure and displays nothing itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from matplotlib.transforms import Bbox

ACCENT, MUTED = "#1f6f8b", "#b0b7bd"


def new_axes(title: str, x: str, y: str, size: tuple[float, float] = (8, 4)) -> tuple[Figure, Axes]:
    """A figure that pyplot does not keep, so that it is shown only where a cell shows it."""
    sns.set_theme(style="whitegrid", context="notebook")
    figure, axes = plt.subplots(figsize=size, layout="constrained", dpi=110)
    plt.close(figure)
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def bars(
    values: Mapping[str, float], title: str, label: str, errors: Mapping[str, float] | None = None, highlight: str = "", log: bool = False,
    marks: Mapping[str, float] | None = None,
) -> Figure:  # fmt: skip
    """Horizontal bars, one a name, the value written at its end; a stroke at each of `marks`, such as a ceiling."""
    figure, axes = new_axes(title, label, "", (8, 0.9 + 0.42 * len(values)))
    names = list(values)
    colours = [ACCENT if not highlight or name == highlight else MUTED for name in names]
    spread = [errors[name] for name in names] if errors else None
    axes.barh(names, list(values.values()), xerr=spread, color=colours, error_kw={"elinewidth": 1})
    axes.invert_yaxis()
    if log:
        axes.set_xscale("log")
    for position, name in enumerate(names):
        if marks and name in marks:
            axes.plot([marks[name]] * 2, [position - 0.4, position + 0.4], color="black", linewidth=2)
        text = f" {values[name]:.3g}" if abs(values[name]) < 1000 else f" {values[name]:,.0f}"
        axes.annotate(text, (values[name] + (spread[position] if spread else 0), position), va="center", fontsize=9)
    axes.margins(x=0.14)
    axes.grid(visible=False, axis="y")
    return figure


def grouped_bars(table: pd.DataFrame, x: str, y: str, hue: str, title: str, label: str, log: bool = False) -> Figure:
    """Vertical bars of a tidy table, coloured by `hue`."""
    figure, axes = new_axes(title, "", label, (9.5, 4.2))
    sns.barplot(table, x=x, y=y, hue=hue, ax=axes, palette="viridis", errorbar=None)
    if log:
        axes.set_yscale("log")
    axes.tick_params(axis="x", rotation=60 if table[x].nunique() > 8 else 0, labelsize=8)
    if legend := axes.get_legend():
        legend.remove()
    # Beneath the axes, outside: the layout then makes room for it, however many rows it and the labels take.
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, fontsize=9, loc="outside lower left", ncols=3, frameon=False)
    axes.set_xlabel("")
    return figure


def lines(series: Mapping[str, Sequence[tuple[float, float]]], title: str, x: str, y: str, log_x: bool = False) -> Figure:
    """One line a name through its (x, y) points."""
    figure, axes = new_axes(title, x, y)
    for (name, points), colour in zip(series.items(), sns.color_palette("viridis", len(series)), strict=True):
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name, color=colour)
    if log_x:
        axes.set_xscale("log")
    if len(series) > 1:
        axes.legend(fontsize=9)
    return figure


def points(table: pd.DataFrame, x: str, y: str, hue: str, columns: str, title: str, labels: tuple[str, str]) -> Figure:
    """A tidy table as points, coloured by `hue`, one panel for each value of `columns`; x is logarithmic, y = 0 is drawn."""
    sns.set_theme(style="whitegrid", context="notebook")
    grid = sns.relplot(table, x=x, y=y, hue=hue, style=hue, col=columns, s=70, height=4.2, aspect=1.0, palette="viridis")
    plt.close(grid.figure)
    grid.set(xscale="log")
    for axes in grid.axes.flat:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    grid.refline(y=0, color="black", linestyle="-").set_axis_labels(*labels).set_titles("{col_name}")
    grid.figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    grid.figure.subplots_adjust(top=0.85)
    grid.figure.set_dpi(110)
    return grid.figure


def scatter(points: Mapping[str, tuple[float, float]], title: str, x: str, y: str, log_y: bool = False, log_x: bool = False) -> Figure:
    """Named points, each written beside its mark; the Pareto front (less of both is better) drawn through."""
    figure, axes = new_axes(title, x, y, (9, 4.6))
    front, best = [], float("inf")
    for name in sorted(points, key=lambda name: points[name]):
        if points[name][1] < best:
            best = points[name][1]
            front.append(points[name])
    axes.step(*zip(*front, strict=True), where="post", color=MUTED, linestyle="--", zorder=1)
    if log_y:
        axes.set_yscale("log")
        axes.set_ylabel(f"{y}, log scale")
    if log_x:
        axes.set_xscale("log")
        axes.set_xlabel(f"{x}, log scale")
    for px, py in points.values():
        axes.scatter(px, py, color=ACCENT, zorder=2)
    axes.margins(x=0.12, y=0.15)
    figure.draw_without_rendering()  # from here on the axes stay, so that places on the picture can be compared
    figure.set_layout_engine("none")
    middle, written = axes.get_window_extent().x0 + axes.get_window_extent().width / 2, list[Bbox]()
    for names in neighbours({name: tuple(axes.transData.transform(point)) for name, point in points.items()}):
        px, py = points[names[0]]
        side, turn = (
            ("left", 1) if axes.transData.transform((px, py))[0] <= middle else ("right", -1)
        )  # towards the middle, so that no name leaves the frame
        label = axes.annotate(
            " / ".join(names), (px, py), textcoords="offset points", xytext=(8 * turn, 3), fontsize=9, ha=side, va="center"
        )
        while any(label.get_window_extent().overlaps(other) for other in written):
            label.xyann = (label.xyann[0], label.xyann[1] - 1)  # names come from top to bottom, so there is room below
        written.append(label.get_window_extent())
    return figure


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


def histogram(values: Sequence[float], levels: Mapping[str, Sequence[float]], title: str, x: str) -> Figure:
    """How `values` are distributed, with each named set of levels as a row of marks below."""
    figure, axes = new_axes(title, x, "density")
    sns.histplot(x=list(values), stat="density", bins=80, color=MUTED, ax=axes, edgecolor=None)
    for row, ((name, marks), colour) in enumerate(zip(levels.items(), sns.color_palette("viridis", len(levels)), strict=True)):
        height = -0.06 * (row + 1) * axes.get_ylim()[1]
        axes.plot(marks, [height] * len(marks), "|", color=colour, markersize=14, markeredgewidth=2, label=name)
    axes.legend(fontsize=9)
    axes.set_ylabel("density")
    return figure


def heatmap(table: pd.DataFrame, title: str, label: str) -> Figure:
    """A matrix of numbers as colours, each written in its field."""
    figure, axes = new_axes(title, "", "", (8.5, 0.8 + 0.36 * len(table)))
    sns.heatmap(table, ax=axes, cmap="viridis", annot=True, fmt=".2g", cbar_kws={"label": label}, annot_kws={"fontsize": 8})
    axes.tick_params(axis="both", labelsize=8, rotation=0)
    axes.set(xlabel=table.columns.name, ylabel=table.index.name)
    return figure
