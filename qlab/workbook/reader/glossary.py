"""The glossary of data/glossary.yaml: each term with its French name and its meaning, linked from the first use in a lesson."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import yaml

from qlab import DATA

# What of a Markdown text is left alone: code, formulas, links and pictures, HTML tags, headings, and words that announce ("*The code:*").
LEFT_ALONE = re.compile(
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]+\$|!?\[[^\]]*\]\([^)]*\)|<[^>]+>|^#+ .*?$|\*{1,2}[A-Z][^*\n]*:\*{1,2}", re.S | re.M
)


@dataclass(frozen=True)
class Term:
    """`also` are other forms of the word that lessons use."""

    term: str
    french: str
    meaning: str
    also: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Its name in addresses."""
        return re.sub(r"[^a-z0-9]+", "-", self.term.lower()).strip("-")


@cache
def load_glossary() -> tuple[Term, ...]:
    """All terms, in alphabetical order."""
    entries = yaml.safe_load((DATA / "glossary.yaml").read_text(encoding="utf-8"))
    found = [Term(e["term"], e["french"], " ".join(e["meaning"].split()), tuple(e.get("also", ()))) for e in entries]
    return tuple(sorted(found, key=lambda term: term.term.lower()))


def linked(markdown: str, terms: Sequence[Term], page: str, used: set[str]) -> str:
    """The text with a link to its entry on `page` at the first use of each term that is not in `used`, which is added to."""
    forms = {form.lower(): term for term in terms for word in (term.term, *term.also) for form in (word, f"{word}s")}
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
