"""Drawings: legible on light and dark paper, with words for who does not see them."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from qlab.show import figures
from qlab.show.drawing import ACCENT, FAINT, INK, MUTED, PALETTE, Drawing, new_axes

LIGHT, DARK = "#ffffff", "#14181c"  # of site.css


def luminance(colour: str) -> float:
    """By WCAG 2."""
    channels = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in to_rgb(colour)]
    return sum(share * channel for share, channel in zip((0.2126, 0.7152, 0.0722), channels, strict=True))


def contrast(a: str, b: str) -> float:
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colour", [*PALETTE, ACCENT, MUTED])
def test_colours_stand_out_from_light_and_from_dark_paper(colour: str) -> None:
    assert contrast(colour, LIGHT) >= 3
    assert contrast(colour, DARK) >= 3


def every_kind() -> list[Drawing]:
    tidy = pd.DataFrame([{"layer": n, "way": way, "e": n + 1.0, "x": n + 1.0, "kind": k} for n in range(3) for way in "ab" for k in "qv"])
    matrix = pd.DataFrame([[1.0, 2.0], [3.0, 4.0]], columns=pd.Index(["q", "v"], name="layer"))
    return [
        figures.bars({"RTN": 0.5, "GPTQ": 0.25}, "GPTQ is nearer", "error", marks={"RTN": 0.4}, highlight="RTN"),
        figures.grouped_bars(tidy, "layer", "e", "way", "Both rise", "error"),
        figures.lines({"a": [(1, 2.0), (2, 3.0)], "b": [(1, 1.0)]}, "One rises", "step", "loss"),
        figures.points(tidy, "x", "e", "way", "kind", "All alike", ("x", "y")),
        figures.scatter({"a": (1, 2), "b": (2, 1)}, "A trade", "MB", "KL", log_y=True),
        figures.histogram([0.1, 0.2, 0.5], {"levels": [0.0, 1.0]}, "Few are large", "value"),
        figures.heatmap(matrix, "Lost in v", "%"),
    ]


def test_a_small_matrix_says_each_of_its_numbers_and_a_large_one_its_means() -> None:
    bits = pd.Index([4, 3], name="bits")
    small = pd.DataFrame([[1.0, 2.0], [3.0, 4.0]], index=bits, columns=pd.Index([32, 64], name="group"))
    assert figures.heatmap(small, "Lost", "%").values == {
        "bits 4, group 32": 1.0, "bits 4, group 64": 2.0, "bits 3, group 32": 3.0, "bits 3, group 64": 4.0,
    }  # fmt: skip
    large = pd.DataFrame([[1.0] * 8, [3.0] * 8], index=bits, columns=pd.Index(range(8), name="layer"))
    assert figures.heatmap(large, "Lost", "%").values == {f"mean of layer {n}": 2.0 for n in range(8)}


def test_every_figure_is_one_svg_in_the_colours_of_the_page() -> None:
    for drawing in every_kind():
        svg = drawing.svg()
        assert svg.startswith("<svg ")
        assert svg.rstrip().endswith("</svg>")
        assert "currentColor" in svg
        assert INK not in svg
        assert FAINT not in svg
        assert "<text" in svg
        assert not re.search(r"(?:fill|stroke): #(?:000000|262626|ffffff|fff)\b(?![^<]*</g>)", svg.split("<text")[0]), svg[:500]
        assert len(svg) < 120_000


def test_every_figure_says_its_title_its_axes_and_its_numbers() -> None:
    titles = ["GPTQ is nearer", "Both rise", "One rises", "All alike", "A trade", "Few are large", "Lost in v"]
    for drawing, title in zip(every_kind(), titles, strict=True):
        words = drawing.words()
        assert words.startswith(title), words
        assert drawing.values
        assert "<" not in words
    assert every_kind()[0].words() == "GPTQ is nearer. across: error. RTN 0.5, GPTQ 0.25"


def test_the_same_figure_is_the_same_text() -> None:
    assert [drawing.html() for drawing in every_kind()] == [drawing.html() for drawing in every_kind()]


def test_words_are_escaped() -> None:
    figure, axes = new_axes('A "title" <b>', "x", "y")
    axes.plot([1, 2], [1, 2])
    assert 'aria-label="A &quot;title&quot; &lt;b&gt;. across' in figure.svg()
