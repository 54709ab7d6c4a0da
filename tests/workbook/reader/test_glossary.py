"""The glossary: whole, and linked from first uses only, never from code, formulas, links or headings."""

from __future__ import annotations

import pytest

from qlab.workbook.language.lessons import read_lesson
from qlab.workbook.language.spoken import VARIABLE
from qlab.workbook.reader.about import NOTEBOOKS, lesson_names
from qlab.workbook.reader.glossary import Term, in_order, linked, load_glossary

TERMS = [Term("KL divergence", "f", "m", ("KL",)), Term("group", "groupe", "m"), Term("scale", "échelle", "m")]


def link(text: str) -> str:
    return linked(text, TERMS, "g", set())


def test_every_term_is_whole_and_stands_once() -> None:
    terms = load_glossary()
    assert len(terms) > 40
    assert len({term.place for term in terms}) == len(terms)
    assert all(term.french and term.meaning.endswith(".") for term in terms)
    for forms in ([(term.term, *term.also) for term in terms], [(term.french, *term.french_also) for term in terms]):
        words = [form.lower() for each in forms for form in each]
        assert len(words) == len(set(words))


def test_the_first_use_is_linked_in_the_form_that_it_has() -> None:
    assert link("Groups and a group. KL; the KL divergence.") == "[Groups](g#group) and a group. [KL](g#kl-divergence); the KL divergence."


@pytest.mark.parametrize(
    "text",
    [
        "`scale`", "```\nscale\n```", "$scale$", "$$\nscale\n$$", "[scale](a.md)", "![scale](a.png)", '<img alt="scale">', "# The scale\n",
        "scaled", "upscale", "scale_search", "a/scale", "large-scale",
    ],
)  # fmt: skip
def test_what_is_no_word_of_the_text_is_left_alone(text: str) -> None:
    assert link(text) == text


def test_in_french_the_terms_go_by_their_french_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "fr")
    assert (
        link("*L'échelle :* des échelles d'un groupe, the scale.")
        == "*L'échelle :* des [échelles](g#scale) d'un [groupe](g#group), the scale."
    )
    names = [term.forms[0] for term in in_order()]
    assert names.index("divergence de Kullback-Leibler") < names.index("échelle") < names.index("fenêtre")


@pytest.mark.parametrize("language", ["en", "fr"])
@pytest.mark.parametrize("lesson", lesson_names())
def test_links_change_nothing_else_of_a_lesson(lesson: str, language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, language)
    used = set[str]()
    for cell in read_lesson(NOTEBOOKS / f"{lesson}.ipynb").cells:
        if cell.cell_type == "markdown":
            text = linked(cell.source, load_glossary(), "PAGE", used)
            without = text
            for term in load_glossary():
                without = without.replace(f"](PAGE#{term.place})", "\0")
            assert without.replace("\0", "").replace("[", "") == cell.source.replace("[", "")
    assert len(used) > 5
