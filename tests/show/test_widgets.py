"""A control: one page with all pictures in it, in order, whose first is shown without script; an error in any picture fails the cell."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from IPython.display import HTML

from qlab.show import figures, widgets
from qlab.show.drawing import Drawing
from qlab.show.widgets import MOST, explore


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    monkeypatch.setattr(widgets, "display", lambda data, raw: found.append(data))
    return found


def pictures(page: str) -> dict[str, str]:
    found = re.search(r'<script type="application/json">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def bar(bits: int, layer: str = "q") -> Drawing:
    return figures.bars({"RTN": 1 / bits}, f"{layer} at {bits} bits", "error")


def test_all_pictures_are_in_the_page_and_the_first_is_shown(shown: list[dict[str, str]]) -> None:
    explore(bar, bits=[4, 8, 2], layer=["q", "v"])
    (output,) = shown
    page = output["text/html"]
    every = pictures(page)
    assert list(every) == [f"{bits} {layer}" for bits in range(3) for layer in range(2)]
    assert "v at 8 bits" in every["2 1"]
    assert f'aria-live="polite">{every["1 0"]}</div>' in page  # the first choice, though 2 comes before 4
    assert 'max="2" value="1" aria-label="bits" aria-valuetext="4"' in page
    assert output["text/plain"].startswith("q at 4 bits")
    assert "http" not in re.sub(r"http://www\.w3\.org/[\w/]+", "", page)


def test_the_numbers_of_every_choice_stand_in_a_table(shown: list[dict[str, str]]) -> None:
    explore(bar, bits=[4, 2])
    rows = re.findall(r"<tr>(.*?)</tr>", shown[0]["text/html"].split("<table>")[1].split("</table>")[0])
    assert [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows] == [["bits", "RTN"], ["2", "0.5"], ["4", "0.25"]]


def test_texts_are_shown_as_they_are(shown: list[dict[str, str]]) -> None:
    explore(lambda file: f"</script><b>{file}", file=["a", "b"])
    page = shown[0]["text/html"]
    assert page.count("</script>") == 2  # the page's own
    assert "&lt;/script&gt;&lt;b&gt;b" in pictures(page)["1"]
    assert "<table>" not in page


def test_a_table_that_holds_a_script_ends_no_script_of_the_page(shown: list[dict[str, str]]) -> None:
    explore(lambda n: HTML(f"<table><script>{n}</script></table>"), n=["a", "b"])
    page = shown[0]["text/html"]
    assert page.split('<script type="application/json">')[1].count("</script>") == 2
    assert pictures(page)["1"].endswith("<table><script>b</script></table></div>")


def test_an_error_in_any_picture_fails(shown: list[dict[str, str]]) -> None:
    with pytest.raises(KeyError):
        explore(lambda name: {"a": "fine"}[name], name=["a", "b"])
    assert shown == []


def test_too_many_choices_are_thinned_out_and_said(shown: list[dict[str, str]]) -> None:
    explore(lambda layer, way: f"{layer} {way}", layer=[f"l{n}" for n in range(500)], way=["a", "b"])
    page = shown[0]["text/html"]
    assert len(pictures(page)) <= MOST
    assert "Shown of layer: 125 of 500 choices." in page


def test_names_and_values_are_escaped(shown: list[dict[str, Any]]) -> None:
    explore(lambda a_b: "x", a_b=["<i>", "&"])
    assert "<span>a b</span>" in shown[0]["text/html"]
    assert "&lt;i&gt;" in shown[0]["text/html"]
