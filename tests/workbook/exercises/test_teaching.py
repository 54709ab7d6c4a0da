"""Lessons for a class: whole, without solutions, which the teacher's file has."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from qlab.cli import call
from qlab.support.errors import UserError
from qlab.workbook.exercises.checks import WRITTEN
from qlab.workbook.exercises.teaching import TEACHER, write_class
from qlab.workbook.language.spoken import VARIABLE
from qlab.workbook.reader.about import NOTEBOOKS, every_lesson, lesson_names


def test_copies_have_no_solution_and_the_teacher_has_all(tmp_path: Path) -> None:
    assert call(["teach", str(tmp_path / "course")]) == 0
    for lesson in lesson_names():
        original, copy = (nbformat.read(folder / f"{lesson}.ipynb", as_version=4) for folder in (NOTEBOOKS, tmp_path / "course"))
        assert "exercise.solution(" in str(original)
        assert "solution" not in "".join(cell.source for cell in copy.cells if cell.cell_type == "code")
        assert [cell.id for cell in copy.cells] == [cell.id for cell in original.cells]
    told = (tmp_path / "course" / TEACHER).read_text()
    for exercise in WRITTEN.values():
        assert f"def {exercise.solution.__name__}(" in told
        assert all(mistake.said in told for mistake in exercise.mistakes)
    assert told.count("### ") == sum(len(lesson.exercises) for lesson in every_lesson())


def test_in_french(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "fr")
    write_class(tmp_path / "cours")
    assert "Indices\u00a0:" in (tmp_path / "cours" / TEACHER).read_text()
    assert "Ce que montre cette leçon" in (tmp_path / "cours" / "01_principles.ipynb").read_text()


@pytest.mark.parametrize("there", ["folder", "file", "link"])
def test_what_is_there_stays(there: str, tmp_path: Path) -> None:
    place = tmp_path / "course"
    {"folder": place.mkdir, "file": place.touch, "link": lambda: place.symlink_to("nowhere")}[there]()
    with pytest.raises(UserError, match="is there already"):
        write_class(place)
    assert [file.name for file in tmp_path.iterdir()] == ["course"]
