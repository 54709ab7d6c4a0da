"""Nothing drawn over something else; tables aligned by what their columns hold; numbers in sentences."""

from __future__ import annotations

import itertools
import re

import pandas as pd
import pytest
from matplotlib.transforms import Bbox

from qlab.show import figures
from qlab.show.tables import is_number, styled, table_of
from qlab.show.titles import gptq
from qlab.support.wording import Sentence, counted, listed, signed
from qlab.workbook.language.spoken import VARIABLE

POINTS = {
    "GGUF Q4_K_M": (7.2, 0.017), "AWQ by qlab": (8.8, 0.0312), "AWQ by AutoAWQ": (8.8, 0.0306), "GPTQ by qlab": (8.9, 0.0228),
    "NF4 by qlab": (8.9, 0.0385), "NF4 by bitsandbytes": (8.9, 0.0385), "GPTQ by AutoGPTQ": (13.1, 0.0283), "GGUF Q8_0": (11.8, 0.0002),
}  # fmt: skip


def test_labels_of_a_scatter_neither_overlap_nor_leave_the_frame() -> None:
    figure = figures.scatter(POINTS, "Distance", "MB", "KL", log_y=True)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [label.get_window_extent() for label in axes.texts]
    assert sum(label.get_text().count(" / ") + 1 for label in axes.texts) == len(POINTS)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
    assert axes.get_ylabel().endswith("log scale")


@pytest.mark.parametrize("turned", [False, True])
def test_labels_of_a_scatter_touch_neither_its_line_nor_its_points(turned: bool) -> None:
    points = {name: (1 / x, y) for name, (x, y) in POINTS.items()} if turned else POINTS
    figure = figures.scatter(points, "Distance", "MB", "KL", log_y=True)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    (line,) = axes.lines
    corners = axes.transData.transform(line.get_xydata())
    steps = [Bbox([a.clip(max=b), a.clip(min=b)]) for a, b in itertools.pairwise(corners)]
    marks = [Bbox([place - 4, place + 4]) for place in (axes.transData.transform(point) for point in points.values())]
    boxes = [label.get_window_extent() for label in axes.texts]
    assert len(steps) >= 2
    assert [box for box in boxes if any(box.overlaps(other) for other in [*steps, *marks])] == []


def test_a_point_that_is_not_ranked_is_hollow_and_off_the_line() -> None:
    figure = figures.scatter({"a": (1.0, 2.0), "b": (2.0, 1.0), "wild": (0.5, 0.5)}, "Distance", "ms", "KL", unranked=["wild"])
    (axes,) = figure.axes
    assert axes.lines[0].get_xydata().tolist() == [[1.0, 2.0], [2.0, 2.0], [2.0, 1.0]]
    assert [len(marks.get_facecolors()) for marks in axes.collections] == [1, 1, 0]
    none = figures.scatter({"wild": (0.5, 0.5)}, "Distance", "ms", "KL", unranked=["wild"])
    assert list(none.axes[0].lines) == []


def test_the_legend_of_grouped_bars_stands_clear_of_title_and_bars() -> None:
    ways = ("RTN", "GPTQ", "GPTQ, group order, searched, settled", "a fourth way to do it")
    table = pd.DataFrame([{"layer": f"{n}.down_proj", "way": way, "error": 0.1} for n in range(12) for way in ways])
    figure = figures.grouped_bars(table, "layer", "error", "way", "The same, layer by layer", "error")
    figure.draw_without_rendering()
    (axes,), (legend,) = figure.axes, figure.legends
    box = legend.get_window_extent()
    assert not box.overlaps(axes.get_window_extent())
    assert not box.overlaps(axes.get_tightbbox())  # title and labels included
    assert len(legend.get_texts()) == 4


def test_text_stands_left_and_numbers_right() -> None:
    frame = pd.DataFrame({"use": ["on vLLM", "QLoRA"], "kl": ["0.01 ± 0.002", "—"], "count": [1, 2]})
    assert [is_number(frame[name]) for name in frame] == [False, True, True]
    page = styled(frame).to_html()
    assert "th.col0" not in page
    assert "th.col1" in page
    assert "th.col2" in page


def test_a_number_stays_on_one_line_and_its_column_right_where_some_are_missing() -> None:
    frame = pd.DataFrame({"peak": ["44", "no (1)", "—"], "word": ["no (1)", "none", "—"]})
    assert [is_number(frame[name]) for name in frame] == [True, False]
    page = styled(frame).to_html()
    assert len(re.findall(r"td\.col0 \{\s*white-space: ?nowrap", page)) == 1
    assert "col1 {" not in page


def test_a_logarithmic_axis_has_the_values_that_were_measured() -> None:
    drawing = figures.lines({"a": [(1, 0.5), (4, 0.3), (16, 0.2)], "b": [(1, 0.4), (4, 0.2)]}, "Over text", "windows", "KL", log_x=True)
    drawing.draw_without_rendering()
    assert [label.get_text() for label in drawing.axes[0].get_xticklabels()] == ["1", "4", "16"]
    assert drawing.axes[0].get_xticklabels(minor=True) == []


def test_a_logarithmic_axis_has_points_in_place_of_bars() -> None:
    values = {"RTN": 0.5, "GPTQ": 0.01}
    plain, log = (figures.bars(values, "GPTQ is nearer", "error", {"RTN": 0.1, "GPTQ": 0.001}, log=log).axes[0] for log in (False, True))
    assert (len(plain.patches), len(log.patches)) == (2, 0)
    assert [float(line.get_xdata()[0]) for line in log.lines if line.get_marker() == "o"] == [0.5, 0.01]
    assert [label.get_text() for label in log.get_yticklabels()] == ["RTN", "GPTQ"]
    table = pd.DataFrame([{"layer": str(n), "way": way, "error": 10.0**-n} for n in range(3) for way in ("RTN", "GPTQ")])
    plain, log = (figures.grouped_bars(table, "layer", "error", "way", "GPTQ is nearer", "error", log=log) for log in (False, True))
    assert len(plain.axes[0].patches) >= 6
    assert len(log.axes[0].patches) == 0
    assert sum(len(points.get_offsets()) for points in log.axes[0].collections) == 6
    assert [len(figure.legends[0].get_texts()) for figure in (plain, log)] == [2, 2]


def test_numbers_in_sentences() -> None:
    assert [signed(-1e-9, 4), signed(-0.5, 1), signed(0.25, 2)] == ["0.0000", "-0.5", "+0.25"]
    assert [counted(1, "token"), counted(2000, "token")] == ["1 token", "2,000 tokens"]
    assert [listed(["3"]), listed(["5", "6", "7"])] == ["3", "5, 6 and 7"]


def test_a_figure_speaks_french(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "fr")
    errors = {"no compensation": 2.0, "RTN": 1.0, "GPTQ": 0.5}
    drawn = figures.bars(errors, gptq.compensation(errors), "relative squared error")
    page = drawn.html().replace("\u00a0", " ")
    for said in ("GPTQ laisse 50 % de", "erreur quadratique relative", "sans compensation"):
        assert page.count(said) >= 2  # drawn, and in the alt text
    assert "en abscisse\u00a0: erreur quadratique relative" in drawn.words()
    assert "no compensation" not in page


def test_a_table_speaks_french(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {
            "method": "GPTQ symmetric",
            "told apart": True,
            "KL (nats/token)": 42.9 + 1e-9,
            "why": Sentence("{name} has KL {kl:.5f}", name="a", kl=0.1),
        }
    ]
    assert [text in table_of(rows).to_html() for text in ("method", ">yes<", ">42.9<", "a has KL 0.10000")] == [True] * 4
    monkeypatch.setenv(VARIABLE, "fr")
    page = table_of(rows).to_html()
    assert [text in page for text in ("méthode", "GPTQ symétrique", "distingué", ">oui<", "KL (nats/jeton)", "a a une KL de 0.10000")] == [
        True
    ] * 6


def test_a_name_between_whose_points_there_is_nothing_has_no_line() -> None:
    curve = [(1.0, 3.0), (2.0, 1.0)]
    first, second = figures.lines({"chosen": curve, "alike": curve}, "A finding", "bits", "KL", apart=["alike"]).axes[0].get_lines()
    assert (first.get_linestyle(), second.get_linestyle()) == ("-", "None")


def test_heights_are_in_proportion_where_they_begin_at_zero() -> None:
    for from_zero in (True, False):
        (axes,) = figures.lines({"chosen": [(1.0, 3.0), (2.0, 2.9)]}, "A finding", "bits", "KL", from_zero=from_zero).axes
        assert (axes.get_ylim()[0] == 0) == from_zero


def test_a_label_longer_than_its_side_has_several_lines() -> None:
    long = "KL predicted for each choice of widths (nats/token), log scale"
    drawing = figures.lines({"chosen": [(1.0, 3.0), (2.0, 1.0)]}, "A finding", "bits", long)
    assert long in drawing.svg()  # in its words on one line
    (axes,) = drawing.axes
    assert axes.get_xlabel() == "bits"
    assert axes.get_ylabel().split() == long.split()
    assert "\n" in axes.get_ylabel()
    side, label = axes.get_window_extent(), axes.yaxis.label.get_window_extent()
    assert label.height <= 1.1 * side.height
