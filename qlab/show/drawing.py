"""A figure that shows itself as SVG in the page: sharp at every size, in the page's own colour of text, light or dark, with its alt text.

An SVG that stands in the page takes the page's colour (`currentColor`); one in an `<img>`, or a PNG, cannot. Text stays text.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any, Literal

import matplotlib as mpl
import seaborn as sns
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

from qlab.workbook.language.spoken import gettext, say

# Each is at least 3:1 against white and against the dark page, the contrast that WCAG asks of what is no text (tests/show/test_drawing.py).
PALETTE = ["#1f7a99", "#d1690e", "#3c8d40", "#b04f9a", "#7d6bd0", "#8a7a1c", "#cf4b4b", "#6f7a83"]
ACCENT, MUTED = PALETTE[0], "#858d94"
# Two colours that no figure has: where they stand in the SVG, it takes the colour of the page's text, and a fainter one.
INK, FAINT = "#010203", "#040506"
COLOURS = {
    f"stroke: {FAINT}": "stroke: currentColor; stroke-opacity: 0.22",
    f"fill: {FAINT}": "fill: currentColor; fill-opacity: 0.22",
    INK: "currentColor",
}
STYLE = {
    "text.color": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.edgecolor": FAINT, "grid.color": FAINT, "axes.facecolor": "none", "figure.facecolor": "none", "legend.frameon": False,
    "patch.edgecolor": "none", "patch.force_edgecolor": False,
    "font.sans-serif": ["DejaVu Sans", "Verdana"],  # of one width: what is laid out in the first fits in the second
}  # fmt: skip
NAMES = re.compile(r' id="[A-Za-z0-9]+_\d+"')  # of parts, the same in every figure; what is referred to has another kind of name
NAMED = 12  # values that the alt text says; more are in the table
NARROW, LINE = 5.2, 56  # inches of a drawing whose text is read on a phone, and the characters of a line of its title
ACROSS, HIGH = 9, 0.2  # characters of an inch of another drawing's title, and the inches that a line of it takes
ALONG, CHARACTERS = (0.6, 0.8), 130  # what axes have of a drawing's width and height; characters an inch of a type of one point
GAP, BELOW = 0.32, 0.5  # inches above each pair of axes, for a caption, and below the last, for what its x is


class Drawing(Figure):
    """A matplotlib figure with what it shows in words: its title, what its axes are, and `values`, the numbers drawn, by name."""

    values: Mapping[str, Any]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.values = {}

    def words(self) -> str:
        """The alt text."""
        title = self.get_suptitle()
        labels = {
            gettext("across"): next((text for axes in self.axes if (text := axes.get_xlabel())), ""),
            gettext("upwards"): next((text for axes in self.axes if (text := axes.get_ylabel())), ""),
        }
        named = [say("{name}: {said}", name=way, said=label.replace("\n", " ")) for way, label in labels.items() if label]
        said = [f"{gettext(name)} {shown(value)}" for name, value in self.values.items()]
        values = ", ".join(said)
        if len(said) > NAMED:
            values = say("{count} values, from {first} to {last}", count=len(said), first=said[0], last=said[-1])
        return ". ".join(part for part in (title.replace("\n", " "), "; ".join(named), values) if part)

    def speak(self) -> None:
        """Put its texts into the language that is spoken, those that are messages; the others stay."""
        for text in self.findobj(Text):
            if (said := gettext(text.get_text())) != text.get_text():
                text.set_text(said)
        if isinstance(self.get_layout_engine(), ConstrainedLayoutEngine):  # it makes room for more lines
            for axes in self.axes:
                self.fold_labels(axes)

    def fold_labels(self, axes: Axes) -> None:
        """Break the labels of axes into lines no longer than the side that they stand at, as far as it is known before the layout."""
        spec, (width, height) = axes.get_subplotspec(), self.get_size_inches()
        rows, columns = spec.get_gridspec().get_geometry() if spec else (1, 1)
        for side, inches in ((axes.xaxis, ALONG[0] * width / columns), (axes.yaxis, ALONG[1] * height / rows)):
            side.label.set_text(fill(side.label.get_text(), max(12, int(inches * CHARACTERS / side.label.get_fontsize()))))

    def svg(self) -> str:
        """The figure as one `<svg>` element, with its alt text, in the language that is spoken."""
        self.speak()
        file = io.StringIO()
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "qlab"}):
            self.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        drawn = file.getvalue()
        drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn[drawn.index("<svg") :], flags=re.S)
        for colour, own in COLOURS.items():
            drawn = drawn.replace(colour, own)
        named = f'<svg role="img" aria-label="{html.escape(self.words())}"'
        return re.sub(r"\n\s*", "\n", NAMES.sub("", drawn)).replace("<svg", named, 1)

    def html(self) -> str:
        """The figure for a page."""
        drawn = self.svg().replace("<svg ", '<svg style="max-width:100%;height:auto" ', 1)
        return f'<figure class="qlab-figure" style="margin:0">{drawn}</figure>'

    def _ipython_display_(self) -> None:
        """Shown by this alone: IPython would else add a PNG of every figure."""
        display({"text/html": self.html(), "text/plain": self.words()}, raw=True)


def shown(value: Any) -> str:
    """A number in three digits, or in whole ones from a thousand; anything else as it prints."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def new_axes(title: str, x: str, y: str, size: tuple[float, float] = (8, 4)) -> tuple[Drawing, Axes]:
    """A drawing with one pair of axes, that is shown only where a cell shows it."""
    figure, (axes,) = panels(title, 1, size)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def panels(title: str, count: int, size: tuple[float, float]) -> tuple[Drawing, list[Axes]]:
    """A drawing with `count` pairs of axes beside each other, whose scales are the same; of `size` inches, and higher by what lines its
    title takes beyond the first."""
    lines = fill(gettext(title), int(ACROSS * size[0]))
    figure = blank((size[0], size[1] + HIGH * lines.count("\n")), layout="constrained")
    figure.suptitle(lines, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure, list(figure.subplots(1, count, squeeze=False, sharex=True, sharey=True)[0])


def stacked(title: str, heights: Sequence[float], shared: bool = True) -> tuple[Drawing, list[Axes]]:
    """A drawing as narrow as a phone, with pairs of axes of so many inches below each other; `shared`: of one x.

    The margins are fixed, which takes half the time of a layout that measures every text: a control draws many of these.
    """
    lines = fill(title, LINE)
    top, gap = 0.45 + 0.17 * (lines.count("\n") + 1), GAP if shared else GAP + BELOW
    high = top + sum(heights) + gap * (len(heights) - 1) + BELOW
    figure = blank((NARROW, high))
    figure.suptitle(lines, x=0.01, y=1 - 0.06 / high, ha="left", va="top", fontsize=11, fontweight="bold")
    axes = figure.subplots(len(heights), 1, squeeze=False, sharex=shared, height_ratios=list(heights))[:, 0]
    middle = sum(heights) / len(heights)
    for part in axes:
        part.tick_params(labelsize=9)
        part.xaxis.label.set_size(10)
        part.yaxis.label.set_size(10)
    figure.subplots_adjust(left=0.75 / NARROW, right=1 - 0.1 / NARROW, top=1 - top / high, bottom=BELOW / high, hspace=gap / middle)
    return figure, list(axes)


def caption(axes: Axes, text: str) -> None:
    """What one of several pairs of axes shows, above it."""
    axes.annotate(text, (0, 1), xycoords="axes fraction", xytext=(0, 3), textcoords="offset points", fontsize=9)


def blank(size: tuple[float, float], layout: Literal["constrained"] | None = None) -> Drawing:
    """A drawing of `size` inches with nothing on it."""
    sns.set_theme(style="whitegrid", context="notebook", palette=PALETTE, rc=STYLE)
    return Drawing(figsize=size, layout=layout, dpi=110)  # not pyplot's, which would show it once more
