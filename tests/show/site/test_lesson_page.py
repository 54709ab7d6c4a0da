"""An executed lesson as a page: formulas, solutions, tables, and nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from qlab.show.site.lesson_page import lesson_page
from qlab.show.site.pages import Link
from qlab.workbook.reader.about import NOTEBOOKS, lesson_names
from qlab.workbook.record import MIME

TABLE = "<table><thead><tr><th>&nbsp;</th><th>a</th></tr></thead><tbody><tr><th>0</th><td>1</td></tr></tbody></table>"


def page_of(tmp_path: Path, *cells: nbformat.NotebookNode) -> BeautifulSoup:
    notebook = tmp_path / "01_small.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# 1. Small\n\n## Part one"), *cells]), notebook)
    return BeautifulSoup(lesson_page(notebook, [Link("02_awq.html", "2. AWQ", "next")]), "html.parser")


def output_cell(data: dict[str, object]) -> nbformat.NotebookNode:
    return new_code_cell("x = 1", outputs=[new_output("display_data", data=data)])


def test_formulas_are_mathml(tmp_path: Path) -> None:
    text = r"inline $\hat{w}_q$ and" + "\n\n" + r"$$\frac{a}{b}$$" + "\n\n" + r"\begin{align}a &= b \\ c &= d\end{align}"
    page = page_of(tmp_path, new_markdown_cell(text))
    assert [math.get("display") for math in page.select("main math")] == ["inline", "block", "block"]
    assert page.select("main mfrac")
    assert "$" not in page.main.get_text()


@pytest.mark.parametrize("lesson", lesson_names())
def test_every_formula_of_the_lessons_can_be_set(lesson: str, tmp_path: Path) -> None:
    page = BeautifulSoup(lesson_page(NOTEBOOKS / f"{lesson}.ipynb", []), "html.parser")
    assert [math.get_text() for math in page.select("math") if "\\" in math.get_text()] == []
    assert len(page.select(".outline a")) >= 3
    assert all(page.find(id=link["href"].removeprefix("#")) for link in page.select(".outline a"))


def test_a_solution_stays_within_its_fold(tmp_path: Path) -> None:
    text = "<details><summary>Solution</summary>\n\nIt is **four**.\n\n</details>\n\nAfter."
    page = page_of(tmp_path, new_markdown_cell(text))
    (fold,) = [part for part in page.select("main details") if "code" not in part.get("class", [])]
    assert "It is four." in fold.get_text()
    assert "After." not in fold.get_text()


def test_tables_scroll_within_themselves(tmp_path: Path) -> None:
    page = page_of(tmp_path, output_cell({"text/html": TABLE}))
    frame = page.select_one("main table").parent
    assert frame["tabindex"] == "0"
    assert frame["aria-label"] == "Table: Part one"
    assert [cell.name for cell in page.select("main thead tr > *")] == ["td", "th"]


def test_pictures_have_words_and_records_are_not_shown(tmp_path: Path) -> None:
    page = page_of(tmp_path, output_cell({"image/png": "iVBORw0KGgo="}), output_cell({MIME: {"name": "hidden-record"}}))
    assert page.select_one("main img")["alt"] == "Figure 1 of lesson 01_small: Part one"
    assert "hidden-record" not in str(page)


def test_code_is_folded_and_what_papermill_injected_is_left_out(tmp_path: Path) -> None:
    injected = new_code_cell("model = '/home/me'")
    injected.metadata["tags"] = ["injected-parameters"]
    page = page_of(tmp_path, new_code_cell("answer = 1 + 2  # why"), injected)
    (code,) = page.select("details.code")
    assert not code.has_attr("open")
    assert "answer = 1 + 2" in code.get_text()
    assert "/home/me" not in str(page)


def test_what_the_reader_is_to_write_is_open(tmp_path: Path) -> None:
    gap = new_code_cell("def f(x):\n    raise NotImplementedError  # your lines")
    gap.metadata["tags"] = ["exercise"]
    page = page_of(tmp_path, new_code_cell("answer = 1"), gap)
    assert [code.has_attr("open") for code in page.select("details.code")] == [False, True]


def test_nothing_is_asked_of_elsewhere(tmp_path: Path) -> None:
    page = page_of(tmp_path, new_markdown_cell("[a](https://arxiv.org/abs/1)"), output_cell({"text/html": TABLE}))
    assert page.select("script[src], link[rel=stylesheet], iframe, img[src^=http]") == []
    assert "@import" not in str(page)
    assert page.select_one("title").get_text() == "1. Small · qlab"
    assert page.select_one(".bar [rel=next]")["href"] == "02_awq.html"
