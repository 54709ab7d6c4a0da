"""The page on a reader's own model: the forecast as it is given, an error in its place, and what was typed as text."""

from __future__ import annotations

from typing import Any

import pytest
from bs4 import BeautifulSoup

from qlab.show.site.front import links, start_page
from qlab.show.site.own_model import own_model_page, told, what_can_go_wrong
from qlab.support.errors import UserError
from qlab.workbook.language.spoken import VARIABLE
from tests.show.site.test_french import english_of

FOUND: dict[str, Any] = {
    "model": "<b>mine</b>", "summary": ["It has 12 million weights."], "columns": ["lesson", "memory"],
    "rows": [["01 Principles", "1.20 GB"]], "notes": [{"said": "Too <large>.", "todo": "Take another.", "stops": True}],
}  # fmt: skip


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "en")


def parsed(**given: Any) -> BeautifulSoup:
    return BeautifulSoup(own_model_page(links(), **given), "html.parser")


def test_at_first_it_asks_and_says_what_can_go_wrong() -> None:
    page = parsed(xsrf='<input type="hidden" name="_xsrf" value="x">')
    assert page.select_one("form[method=post] input[name=_xsrf]")["value"] == "x"
    assert page.select_one("label[for=model]")
    assert page.select_one("#forecast") is None
    assert page.select_one("[role=alert]") is None
    assert len(page.select("table tbody tr")) == len(what_can_go_wrong())


def test_the_forecast_stands_with_the_command_and_what_was_typed_is_text() -> None:
    page = parsed(asked="my models/it's <i>", found=FOUND)
    assert page.select_one("#forecast").get_text() == "<b>mine</b>"
    assert page.select_one("#model")["value"] == "my models/it's <i>"
    assert page.select_one("pre").get_text() == """.venv/bin/qlab run --model 'my models/it'"'"'s <i>'"""
    assert page.select_one("li strong").get_text() == "Stops the run:"
    assert "Too <large>. Take another." in page.get_text()
    table, wrong = page.select("[role=region] table")
    assert [cell.get_text() for cell in table.select("td")] == FOUND["rows"][0]
    assert [cell.get("class") for cell in table.select("td")] == [None, ["number"]]
    assert wrong.select(".number") == []
    assert [region["aria-labelledby"] for region in page.select("[role=region]")] == ["forecast", "wrong"]


def test_where_the_times_come_from_is_said_and_what_they_are_scaled_by() -> None:
    said = " ".join(parsed(asked="x", found=FOUND).get_text().split())
    assert "fitted to runs on two cores with nothing else to do, and scaled by how fast this computer multiplies matrices" in said


def test_an_error_stands_in_its_place() -> None:
    page = parsed(asked="x", error="no model 'x': <expected>")
    assert page.select_one("[role=alert]").get_text() == "no model 'x': <expected>"
    assert page.select_one("pre") is None


def test_in_french(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "fr")
    page = parsed(asked="embedded", found=FOUND)
    assert page.html["lang"] == "fr"
    assert [message for message in english_of("model") if message in page.get_text()] == []
    assert page.select_one("pre").get_text() == ".venv/bin/qlab run --model embedded --language fr"
    assert "Le hub est injoignable." in page.get_text()


def test_the_contents_lead_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlab.show.site.front.open_workspace", list)
    page = BeautifulSoup(start_page(), "html.parser")
    assert {link["href"] for link in page.select("a[href='/qlab/model']")}
    assert page.select_one("main a[href='/qlab/model']")


def test_what_is_told_of_a_model_is_what_the_page_shows() -> None:
    assert FOUND.keys() <= told("embedded").keys()
    with pytest.raises(UserError, match="no model 'nowhere'"):
        told("nowhere")
