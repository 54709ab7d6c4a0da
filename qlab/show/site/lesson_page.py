"""An executed lesson as a page: nbconvert makes the cells, formulas become MathML, tables scroll within themselves, code is folded."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup, Tag
from jinja2 import pass_context
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from qlab.show.site.pages import FOLDER, MARK, Link, Part, page
from qlab.workbook.language.spoken import gettext, say
from qlab.workbook.reader.about import about
from qlab.workbook.reader.glossary import linked, load_glossary
from qlab.workbook.record import MIME

GLOSSARY, CONTENTS = "glossary.html", "index.html"
HIDDEN = {"application/vnd.jupyter.widget-view+json", MIME}  # bars need a kernel; records are for programs
NAMELESS = "No description has been provided for this image"  # nbconvert's
SCROLLS = ".qlab-scroll, .scroll"


class Renderer(IPythonRenderer):
    """Markdown whose formulas are MathML, which browsers set by themselves: no script, no font and no network."""

    def inline_math(self, body: str) -> str:
        return str(convert(body))

    def block_math(self, body: str) -> str:
        return displayed(body)

    def latex_environment(self, name: str, body: str) -> str:
        return displayed(f"\\begin{{{name}}}{body}\\end{{{name}}}")


def displayed(body: str) -> str:
    """A formula on lines of its own; on a narrow window it scrolls within itself, also by keyboard."""
    return str(convert(body, display="block")).replace("<math ", '<math tabindex="0" ', 1)


class Exporter(HTMLExporter):
    """The cells of a notebook alone, by body.html.jinja."""

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        return str(MarkdownWithMath(renderer=Renderer(escape=False)).render(source))


def lesson_page(notebook: Path, neighbours: Sequence[Link]) -> str:
    """An executed lesson as one self-contained page, with links to its `neighbours`."""
    lesson = about(notebook)
    body, outline = lesson_body(notebook)
    links = [Link(CONTENTS, gettext("Contents and results")), *neighbours, Link(GLOSSARY, gettext("Glossary"))]
    title = f"{lesson.number}. {lesson.title}{MARK}" if lesson.number else f"{lesson.title}{MARK}"
    return page("lesson.html.jinja", title, links, outline, body=body)


def lesson_body(notebook: Path) -> tuple[Markup, list[Part]]:
    """The cells of an executed lesson as HTML, and its sections."""
    content = shown_cells(notebook)
    exporter = Exporter(
        raw_template=(FOLDER / "body.html.jinja").read_text(encoding="utf-8"), template_name="classic", exclude_output_prompt=True
    )
    soup = BeautifulSoup(exporter.from_notebook_node(content)[0], "html.parser")
    for anchor in soup.select("a.anchor-link"):
        anchor.decompose()
    for head in soup.select("th"):
        if not head.get_text(strip=True):  # the corner of a table is no heading
            head.name = "td"
            del head["scope"]
    for table in soup.select("table"):
        if not table.find_parent(class_=SCROLLS.replace(".", "").split(", ")):
            table.wrap(frame(soup, heading_above(table)))
    for code in soup.select(".highlight pre"):
        code["tabindex"] = "0"  # a long line scrolls, by the keyboard too
    count = itertools.count(1)
    for picture in soup.select("img"):
        if str(picture.get("alt", "")) in ("", NAMELESS):
            alt = "Figure {number} of lesson {lesson}: {section}"
            picture["alt"] = say(alt, number=next(count), lesson=notebook.stem, section=heading_above(picture))
    outline = [Part(str(part["id"]), part.get_text(strip=True)) for part in soup.select("h2[id]")]
    return Markup(str(soup)), outline  # made by qlab from cells that this machine has run; what a model said is escaped in them


def shown_cells(notebook: Path) -> NotebookNode:
    """An executed notebook without what is not for readers, its terms linked to the glossary."""
    content = nbformat.read(notebook, as_version=4)
    content.metadata.pop("widgets", None)
    # What papermill injected are the reader's own paths; the report's index and results.json say the parameters.
    content.cells = [cell for cell in content.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    used = set[str]()
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not HIDDEN & set(output.get("data", {}))]
        elif cell.cell_type == "markdown":
            cell.source = linked(cell.source, load_glossary(), GLOSSARY, used)
    return content


def frame(soup: BeautifulSoup, label: str) -> Tag:
    """What scrolls in place of the page; it can be reached by the keyboard, and says what it holds."""
    return soup.new_tag(
        "div", attrs={"class": "scroll", "tabindex": "0", "role": "region", "aria-label": say("Table: {section}", section=label)}
    )


def heading_above(part: Tag) -> str:
    """The section that a part of the page stands in."""
    heading = part.find_previous(["h1", "h2", "h3"])
    return heading.get_text(strip=True) if heading else gettext("the lesson")
