"""The report: a small static site of one page a lesson, a first page with results and claims, a glossary; and results.json.

Everything is in the files themselves: a page opened later asks no server for scripts, fonts or formulas.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from qlab.artifacts.placing import check_apart
from qlab.claims import judge
from qlab.show.site.lesson_page import CONTENTS, GLOSSARY, lesson_page
from qlab.show.site.pages import MARK, Link, Part, glossary_page, page
from qlab.show.site.summary import figure, sentences
from qlab.show.titles import principles
from qlab.support.disk.whole import write_whole
from qlab.support.errors import UserError
from qlab.workbook.answers import side_by_side
from qlab.workbook.batch.runner import DONE, Outcome
from qlab.workbook.language.spoken import gettext, say
from qlab.workbook.reader.about import NOTEBOOKS, About, about

# What is found in the files of a report, by which they are known as qlab's own: one of these. First pages of earlier versions, in English
# alone, are known by their title.
OWN = {
    "index.html": ('<meta name="generator" content="qlab report">', "<title>qlab report"), "results.json": ('"provenance"',),
    ".html": (f"{MARK}</title>",), ".ipynb": ('"injected-parameters"',),
}  # fmt: skip
ANSWERS = re.compile(r"(.+): other answers")  # a column
NOTED = re.compile(r"no \((\d+)\)(?:: (.+))?", re.S)  # in the place of a figure, and at the beginning of the note that says why
# The columns of the results that stand at the front; all are one click away.
MAIN = ("format", "run by", "MB on disk", "KL to FP16 (nats/token)", "perplexity", "prompt tok/s", "generation tok/s")


def check_report(out: Path, lessons: Iterable[str], model: Path) -> None:
    """See that the report of `lessons` on the model in the folder `model` can be written into `out`, before any of them runs.

    Raises:
        UserError: `out` lies in the model's folder, cannot be written, or something lies in the report's place that qlab did not
            make.
    """
    check_apart(out, model)
    files = [out / name for name in (CONTENTS, "results.json", GLOSSARY)]
    files += [out / name for lesson in lessons for name in (f"{lesson}.html", f"notebooks/{lesson}.ipynb")]
    for folder in (out, out / "notebooks"):
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f"{folder} is not a folder: move it away, or choose another --out")
    for file in files:
        if os.path.lexists(file) and not (file.is_file() and known(file)):
            raise UserError(f"{file} is left alone, since qlab did not make it: move it away, or choose another --out")


def known(file: Path) -> bool:
    """Whether a file in a report's place is qlab's own."""
    content = file.read_text(encoding="utf-8", errors="replace")
    return any(mark in content for mark in OWN.get(file.name) or OWN[file.suffix])


def write_report(outcomes: Sequence[Outcome], facts: dict[str, Any], out: Path) -> Path:
    """Write pages, index and results.json for the outcomes of a run; returns the index."""
    results = {name: value for outcome in outcomes for name, value in outcome.records.items()}
    lessons = {outcome.lesson: about(NOTEBOOKS / f"{outcome.lesson}.ipynb") for outcome in outcomes}
    done = [outcome.lesson for outcome in outcomes if outcome.state == DONE]
    for place, lesson in enumerate(done):
        write_whole(
            out / f"{lesson}.html", lesson_page(out / "notebooks" / f"{lesson}.ipynb", neighbours([lessons[name] for name in done], place))
        )
    write_whole(out / GLOSSARY, glossary_page([Link(CONTENTS, gettext("Contents and results"))]))
    write_whole(out / CONTENTS, first_page(outcomes, lessons, results, facts))
    write_whole(out / "results.json", json.dumps(everything(outcomes, results, facts), indent=1, allow_nan=False) + "\n")
    return out / CONTENTS


def neighbours(lessons: Sequence[About], place: int) -> list[Link]:
    """Links from one lesson's page to those before and after it."""
    links = []
    if place:
        links.append(Link(f"{lessons[place - 1].lesson}.html", f"← {lessons[place - 1].number}. {short(lessons[place - 1].title)}", "prev"))
    if place + 1 < len(lessons):
        links.append(Link(f"{lessons[place + 1].lesson}.html", f"{lessons[place + 1].number}. {short(lessons[place + 1].title)} →", "next"))
    return links


def short(title: str) -> str:
    """A title up to its colon."""
    return title.partition(":")[0]


def first_page(outcomes: Sequence[Outcome], lessons: dict[str, About], results: dict[str, Any], facts: dict[str, Any]) -> str:
    """Summary, results, what the model says, lessons, and the ledger of claims."""
    verdicts, drawn, table = judge(results), figure(results), told(results.get("table"))
    answers = results.get("chat", [])
    chat = side_by_side(answers).to_dict("split")
    links = {"#lessons": gettext("Lessons"), "#results": gettext("Results"), "#claims-of-the-guide": gettext("Claims")}
    parts = {
        "results": gettext("Results"), "said": gettext("What the model says"), "lessons": gettext("Lessons"),
        "claims-of-the-guide": gettext("The guide's claims"), "made": gettext("How this report was made"),
    }  # fmt: skip
    return page(
        "report.html.jinja", say("qlab report: {model}", model=facts["model"]["name"]),
        [*(Link(place, text) for place, text in links.items()), Link(GLOSSARY, gettext("Glossary"))],
        [Part(place, text) for place, text in parts.items() if place != "said" or chat["data"]],
        outcomes=outcomes, about=lessons, pages=[outcome.lesson for outcome in outcomes if outcome.state == DONE],
        table=table, main_places=[table["columns"].index(name) for name in MAIN if name in table["columns"]] if table else [],
        summary=sentences(results, verdicts), figure=Markup(drawn.html()) if drawn else "",  # qlab's own drawing
        verdicts=verdicts, counts=Counter(v.verdict for v in verdicts), facts=facts, warnings=warnings_of(results), chat=chat,
        said=principles.said(answers) if answers else "",
    )  # fmt: skip


def told(table: dict[str, Any] | None) -> dict[str, Any] | None:
    """Lesson 7's table in the language that is spoken, as far as a record tells: it is of plain texts, in English."""
    if not table:
        return table
    columns = [say("{task}: other answers", task=found[1]) if (found := ANSWERS.fullmatch(name)) else name for name in table["columns"]]
    rows, notes = [list(map(retold, row)) for row in table["rows"]], list(map(retold, table["notes"]))
    return table | {"columns": columns, "rows": rows, "notes": notes}


def retold(text: str) -> str:
    """A cell or a note: a message; "no (1)" in the place of a figure, or the note of that number."""
    found = NOTED.fullmatch(text)
    if not found:
        return gettext(text)
    if found[2] is None:
        return say("no ({number})", number=int(found[1]))
    return say("no ({number}): {reason}", number=int(found[1]), reason=found[2])


def everything(outcomes: Sequence[Outcome], results: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """The report for programs: provenance, lessons, every record, the ledger."""
    ledger = [
        {"id": v.claim["id"], "figure": v.claim["figure"], "verdict": v.verdict, "measured": v.measured, "rule": v.rule}
        for v in judge(results)
    ]
    lessons = {outcome.lesson: {k: v for k, v in asdict(outcome).items() if k != "records"} for outcome in outcomes}
    for lesson in lessons.values():
        lesson["parameters"] = {name: without_folder(value) for name, value in lesson["parameters"].items()}
    return {"provenance": facts, "lessons": lessons, "results": results, "claims": ledger}


def without_folder(value: Any) -> Any:
    """A parameter as it may be shown: of a path, its last part."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def warnings_of(results: dict[str, Any]) -> list[str]:
    """What a reader should know before believing the table."""
    tokens = {value["tokens"] for name, value in results.items() if name.startswith("quality/")}
    return [say("Quality was measured on {tokens:,} tokens.", tokens=min(tokens)) if tokens else gettext("No quality was measured.")]
