"""The glossary of data/glossary.yaml: each term with its French name and its meaning, linked from the first use in a lesson.

In French the terms go by their French names; their meanings are messages like others (qlab.workbook.language).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import yaml

from qlab import DATA
from qlab.workbook.language.spoken import ENGLISH, gettext, spoken

# What of a Markdown text is left alone: code, formulas, links and pictures, HTML tags, headings, and words that announce ("*The code:*").
LEFT_ALONE = re.compile(
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]+\$|!?\[[^\]]*\]\([^)]*\)|<[^>]+>|^#+ .*?$|\*{1,2}[A-ZÀ-Ý][^*\n]*:\*{1,2}", re.S | re.M
)


@dataclass(frozen=True)
class Term:
    """`also` and `french_also` are other forms of the two words that lessons use."""

    term: str
    french: str
    meaning: str
    also: tuple[str, ...] = ()
    french_also: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Its name in addresses."""
        return re.sub(r"[^a-z0-9]+", "-", self.term.lower()).strip("-")

    @property
    def forms(self) -> tuple[str, ...]:
        """The word and its other forms, in the language that is spoken."""
        return (self.term, *self.also) if spoken() == ENGLISH else (self.french, *self.french_also)

    @property
    def said(self) -> str:
        """The meaning, in the language that is spoken."""
        return gettext(self.meaning)


@cache
def load_glossary() -> tuple[Term, ...]:
    """All terms, in the alphabetical order of their English names."""
    entries = yaml.safe_load((DATA / "glossary.yaml").read_text(encoding="utf-8"))
    found = [
        Term(e["term"], e["french"], " ".join(e["meaning"].split()), tuple(e.get("also", ())), tuple(e.get("french_also", ())))
        for e in entries
    ]
    return tuple(sorted(found, key=lambda term: term.term.lower()))


def in_order() -> list[Term]:
    """All terms, in the alphabetical order of their names in the language that is spoken; accents do not count."""
    return sorted(load_glossary(), key=lambda term: unicodedata.normalize("NFD", term.forms[0].lower()))


def linked(markdown: str, terms: Sequence[Term], page: str, used: set[str]) -> str:
    """The text with a link to its entry on `page` at the first use of each term that is not in `used`, which is added to."""
    forms = {form.lower(): term for term in terms for word in term.forms for form in (word, f"{word}s")}
    word = re.compile(r"(?<![\w/-])(" + "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)) + r")(?![\w/-])", re.I)

    def link(found: re.Match[str]) -> str:
        term = forms[found[0].lower()]
        if term.term in used:
            return found[0]
        used.add(term.term)
        return f"[{found[0]}]({page}#{term.place})"

    parts, end = [], 0
    for left in LEFT_ALONE.finditer(markdown):
        parts += [word.sub(link, markdown[end : left.start()]), left[0]]
        end = left.end()
    return "".join([*parts, word.sub(link, markdown[end:])])
