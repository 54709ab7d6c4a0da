"""Templates into pages: one look for the report, its lessons, the glossary and the start of `qlab lab`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from qlab.workbook.language.spoken import gettext, ngettext, spoken
from qlab.workbook.reader.glossary import in_order

FOLDER = Path(__file__).parent
MARK = " · qlab"  # at the end of every title, by which a page is known as qlab's


class Link(NamedTuple):
    """A link at the top of a page; `rel` is "prev" or "next" where it leads to a neighbour."""

    href: str
    text: str
    rel: str = ""


class Part(NamedTuple):
    """A heading of a page, in its outline."""

    place: str
    text: str


def page(template: str, title: str, links: Sequence[Link], outline: Sequence[Part] = (), **content: Any) -> str:
    """A whole page of HTML, style and script in it, in the language that is spoken. `title` ends with MARK, but for the report's own."""
    style, script = (Markup((FOLDER / name).read_text(encoding="utf-8")) for name in ("site.css", "site.js"))  # qlab's own files
    shared = {"language": spoken(), "title": title, "links": links, "outline": outline, "style": style, "script": script}
    return environment().get_template(template).render(**shared, **content) + "\n"


def glossary_page(links: Sequence[Link]) -> str:
    """The glossary."""
    return page("glossary.html.jinja", f"{gettext('Glossary')}{MARK}", links, terms=in_order())


@cache
def environment() -> Environment:
    found = Environment(
        loader=PackageLoader("qlab.show", "site"), extensions=["jinja2.ext.i18n"], autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
    )  # fmt: skip
    found.policies["ext.i18n.trimmed"] = True
    found.install_gettext_callables(gettext, ngettext, newstyle=True)  # type: ignore[attr-defined]  # the extension's
    found.filters["spoken"] = gettext  # of texts that are data; a % in them is one
    return found
