"""The report and the contents page in French: the language is named, and no English word of qlab's pages is left."""

from __future__ import annotations

from pathlib import Path

import pytest
from bs4 import BeautifulSoup

from qlab import EMBEDDED
from qlab.claims import load_claims
from qlab.evaluate.store.provenance import provenance
from qlab.show.site import front
from qlab.show.site.report import check_report, write_report
from qlab.workbook.batch.runner import SKIPPED, Outcome
from qlab.workbook.benchmark import NOTES
from qlab.workbook.language.spoken import VARIABLE, gettext
from qlab.workbook.reader.about import lesson_names
from tests.workbook.language.messages import of_pages


@pytest.fixture(autouse=True)
def french(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "fr")


def english_of(template: str) -> list[str]:
    """The messages of a page's template and of the frame that all share, without values and those that French has too."""
    found = {message for where, message in of_pages() if where.endswith((f"/{template}.html.jinja", "/page.html.jinja"))}
    return [message for message in found if "%(" not in message and len(message) > 5 and gettext(message) != message]


def test_the_contents_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "open_workspace", lambda: ["02_awq"])
    monkeypatch.setattr(front, "read_progress", dict)
    text = front.start_page()
    page = BeautifulSoup(text, "html.parser")
    assert page.html["lang"] == "fr"
    assert page.title.get_text() == "Sommaire · qlab"
    assert [message for message in english_of("start") if message in text] == []
    links = [link["href"] for link in page.select(".lessons h3 a")]
    assert links == [f"/lab/tree/workspace/fr/{lesson}.ipynb" for lesson in lesson_names()]
    assert "Principes\u00a0: moins de bits" in page.select_one(".lessons h3").get_text()
    assert "Durée : Environ une minute sur deux cœurs." in page.select_one(".lessons .muted").get_text().replace("\u00a0", " ")
    assert "qlab afresh --language fr 02" in page.select_one("[role=status]").get_text()
    settings = front.options(8888, False)
    assert f"--FileContentsManager.preferred_dir={front.WORKSPACE / 'fr'}" in settings


def test_the_report(tmp_path: Path) -> None:
    facts = provenance("embedded")
    index = write_report([Outcome("01_principles", SKIPPED, {}, error="needs another")], facts, tmp_path)
    page = BeautifulSoup(index.read_text(), "html.parser")
    assert page.html["lang"] == "fr"
    assert page.title.get_text().startswith("qlab, rapport")
    assert [message for message in english_of("report") if message in page.get_text()] == []
    rows = page.select("#claims tbody tr")
    assert len(rows) == len(load_claims())
    statements = [claim["statement"] for claim in load_claims()]
    assert [row.select("td")[1].get_text() for row in rows if row.select("td")[1].get_text() in statements] == []
    offered = {option.get("value"): option.get_text() for option in page.select("#verdict option")}
    assert {row["data-verdict"] for row in rows} == set(offered) - {""}  # by which rows are chosen
    assert offered["does not hold"] == "ne se vérifie pas"
    counted = [tag.get_text().split("\u00a0: ") for tag in page.select("#claims-of-the-guide ~ p > .tag")]
    assert {verdict for verdict, _ in counted} == {said for verdict, said in offered.items() if verdict}
    assert sum(int(count) for _, count in counted) == len(rows)
    check_report(tmp_path, [], EMBEDDED)  # a French report is known as qlab's own


def test_the_table_of_results(tmp_path: Path) -> None:
    notes = [NOTES[2], "no (1): vLLM is not on this machine: make vllm"]
    columns = ["format", "run by", "perplexity", "mmlu acc", "mmlu: other answers"]
    table = {"columns": columns, "rows": [["FP16 original", "vLLM", "no (1)", "25.0 ± 1.0 %", "0.0 ± 0.0 %"]], "notes": notes}
    done = Outcome("07_benchmarks", SKIPPED, {}, records={"table": table})
    page = BeautifulSoup(write_report([done], provenance("embedded"), tmp_path).read_text(), "html.parser")
    assert page.select_one("table tbody").get_text().split("\n")[0] == "FP16 originalvLLMnon (1)"
    assert page.select("thead tr")[1].select("th")[-1].get_text() == "mmlu\u00a0: autres réponses"
    said = [note.get_text() for note in page.select("main ul.muted li")]
    assert said[0] == gettext(NOTES[2]) != NOTES[2]
    assert said[1].startswith("non (1)\u00a0: ")


def test_the_glossary() -> None:
    page = BeautifulSoup(front.glossary_page(front.links()), "html.parser")
    assert page.html["lang"] == "fr"
    scale = page.select_one("#scale")
    assert scale.get_text().split() == ["échelle", "scale"]
    assert scale.select_one("[lang=en]").get_text() == "scale"
    assert scale.find_next("dd").get_text().startswith("L'écart entre deux niveaux")
