"""The report: one HTML page a lesson, an index with the results table, figures and claims, and results.json.

Everything is in the files themselves: a page opened later asks no server for scripts, fonts or formulas.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import Environment, PackageLoader, select_autoescape
from nbconvert import HTMLExporter
from nbformat.v4 import new_markdown_cell
from traitlets.config import Config

from qlab.artifacts.placing import check_apart
from qlab.claims import judge
from qlab.support.disk.whole import write_whole
from qlab.support.errors import UserError
from qlab.workbook.answers import side_by_side
from qlab.workbook.record import MIME
from qlab.workbook.runner import DONE, Outcome

# nbconvert's template imports mermaid from another server, for diagrams that no lesson has.
MERMAID = re.compile(r"<script type=\"module\">(?:(?!</script>).)*mermaid.*?</script>", re.S)
NAMELESS = re.compile(r'alt="No description has been provided for this image"')
HIDDEN = {"application/vnd.jupyter.widget-view+json", MIME}  # controls need a kernel; records are for programs


# What is found in the files of a report, by which they are known as qlab's own.
OWN = {"index.html": "<title>qlab report", "results.json": '"provenance"', ".html": " · qlab</title>", ".ipynb": '"injected-parameters"'}


def check_report(out: Path, lessons: Iterable[str], model: Path) -> None:
    """See that the report of `lessons` on the model in the folder `model` can be written into `out`, before any of them runs.

    Raises:
        UserError: `out` lies in the model's folder, cannot be written, or something lies in the report's place that qlab did not
            make.
    """
    check_apart(out, model)
    files = [out / "index.html", out / "results.json"]
    files += [out / name for lesson in lessons for name in (f"{lesson}.html", f"notebooks/{lesson}.ipynb")]
    for folder in (out, out / "notebooks"):
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f"{folder} is not a folder: move it away, or choose another --out")
    for file in files:
        mark = OWN.get(file.name) or OWN[file.suffix]
        if os.path.lexists(file) and (not file.is_file() or mark not in file.read_text(encoding="utf-8", errors="replace")):
            raise UserError(f"{file} is left alone, since qlab did not make it: move it away, or choose another --out")


def write_report(outcomes: Sequence[Outcome], facts: dict[str, Any], out: Path) -> Path:
    """Write pages, index and results.json for the outcomes of a run; returns the index."""
    results = {name: value for outcome in outcomes for name, value in outcome.records.items()}
    verdicts = judge(results)
    figures = {}
    for outcome in outcomes:
        notebook = out / "notebooks" / f"{outcome.lesson}.ipynb"
        if outcome.state == DONE:
            page = out / f"{outcome.lesson}.html"
            write_whole(page, lesson_page(notebook))
            figures[outcome.lesson] = lesson_figures(notebook)
    templates = Environment(loader=PackageLoader("qlab", "show"), autoescape=select_autoescape(default=True, default_for_string=True))
    index = out / "index.html"
    write_whole(
        index,
        templates.get_template("index.html.jinja").render(
            outcomes=outcomes, table=results.get("table"), verdicts=verdicts, counts=Counter(v.verdict for v in verdicts),
            figures=figures, facts=facts, warnings=warnings_of(results),
            chat=side_by_side(results.get("chat", [])).to_dict("split"),
        )
    )  # fmt: skip
    ledger = [
        {"id": v.claim["id"], "figure": v.claim["figure"], "verdict": v.verdict, "measured": v.measured, "rule": v.rule} for v in verdicts
    ]
    lessons = {outcome.lesson: {k: v for k, v in asdict(outcome).items() if k != "records"} for outcome in outcomes}
    for lesson in lessons.values():
        lesson["parameters"] = {name: without_folder(value) for name, value in lesson["parameters"].items()}
    content = {"provenance": facts, "lessons": lessons, "results": results, "claims": ledger}
    write_whole(out / "results.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    return index


def without_folder(value: Any) -> Any:
    """A parameter as it may be shown: of a path, its last part."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def warnings_of(results: dict[str, Any]) -> list[str]:
    """What a reader should know before believing the table."""
    tokens = {value["tokens"] for name, value in results.items() if name.startswith("quality/")}
    return [f"Quality was measured on {min(tokens):,} tokens." if tokens else "No quality was measured."]


def lesson_page(notebook: Path) -> str:
    """An executed lesson as one self-contained page, its controls left out (they need a running kernel)."""
    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("widgets", None)
    content.metadata["title"] = f"{notebook.stem} · qlab"  # else the page is called Notebook
    # What papermill injected are the reader's own paths; the report's index and results.json say the parameters.
    content.cells = [cell for cell in content.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not HIDDEN & set(output.get("data", {}))]
    content.cells.insert(0, new_markdown_cell("[All lessons and the results](index.html)"))
    settings = Config(
        {"HTMLExporter": {"require_js_url": "", "mathjax_url": "", "mermaid_js_url": "", "jquery_url": "", "embed_images": True}}
    )
    page, _ = HTMLExporter(config=settings).from_notebook_node(content)
    page = MERMAID.sub("", page)
    named = itertools.count(1)
    return NAMELESS.sub(lambda _: f'alt="Figure {next(named)} of lesson {notebook.stem}"', page)


def lesson_figures(notebook: Path) -> list[str]:
    """The lesson's pictures, as data URIs, in order."""
    found = []
    for cell in nbformat.read(notebook, as_version=4).cells:
        for output in cell.get("outputs", []):
            if picture := output.get("data", {}).get("image/png"):
                found.append(f"data:image/png;base64,{picture.strip()}")
    return found
