"""The questions for readers: ten a lesson, each with a section that the lesson has, in both languages."""

from __future__ import annotations

import re

import nbformat
import pytest

from qlab import ROOT
from qlab.workbook.language.lessons import markdown_cells, read_lesson
from qlab.workbook.language.spoken import VARIABLE, languages
from qlab.workbook.reader.about import NOTEBOOKS, lesson_names

ASKED = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", (ROOT / "docs" / "questions.md").read_text(encoding="utf-8"), re.M | re.S))


def sections(content: nbformat.NotebookNode) -> set[str]:
    return {number for cell in markdown_cells(content) for number in re.findall(r"^## (\d\.\d) ", cell.source, re.M)}


def test_every_lesson_has_its_questions() -> None:
    assert list(ASKED) == lesson_names()


@pytest.mark.parametrize("language", languages())
@pytest.mark.parametrize("lesson", lesson_names())
def test_ten_questions_each_answered_in_a_section(lesson: str, language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, language)
    found = re.findall(r"^(\d+)\. .+\? \((\d\.\d)\)$", ASKED[lesson], re.M)
    assert [int(number) for number, _ in found] == list(range(1, 11))
    assert {section for _, section in found} <= sections(read_lesson(NOTEBOOKS / f"{lesson}.ipynb"))
