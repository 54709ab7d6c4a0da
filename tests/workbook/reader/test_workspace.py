"""The reader's copies: made from the lessons, left alone once worked on, brought back on demand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nbformat
import pytest

from qlab.workbook.language.spoken import VARIABLE
from qlab.workbook.parameters import parameters_of
from qlab.workbook.reader import about, workspace
from qlab.workbook.reader.about import lesson_names
from qlab.workbook.reader.workspace import ASIDE, open_workspace, start_afresh


@pytest.fixture
def notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(about.NOTEBOOKS, tmp_path / "notebooks"))
    for module in (about, workspace):
        monkeypatch.setattr(module, "NOTEBOOKS", folder)
    return folder


def change(notebook: Path, text: str) -> None:
    """As a new version of a lesson, or a reader, would."""
    content = nbformat.read(notebook, as_version=4)
    content.cells[-1].source += text
    nbformat.write(content, notebook)


def test_copies_are_whole_lessons_with_links(notebooks: Path, tmp_path: Path) -> None:
    place = tmp_path / "workspace"
    assert open_workspace(place) == []
    assert sorted(file.stem for file in place.glob("*.ipynb")) == lesson_names()
    first, last = (nbformat.read(place / f"{lesson}.ipynb", as_version=4) for lesson in (lesson_names()[0], lesson_names()[-1]))
    nbformat.validate(first)
    assert "02_awq.ipynb" in first.cells[0].source
    assert "←" not in first.cells[0].source
    assert "→" not in last.cells[-1].source
    text = "\n".join(cell.source for cell in first.cells)
    assert text.count("(/qlab/glossary#perplexity)") == 1
    original = nbformat.read(notebooks / "01_principles.ipynb", as_version=4)
    assert [cell.source for cell in first.cells if cell.cell_type == "code"] == [c.source for c in original.cells if c.cell_type == "code"]
    assert parameters_of(place / "01_principles.ipynb") == parameters_of(notebooks / "01_principles.ipynb")


def test_a_lesson_that_changed_replaces_only_a_copy_that_nobody_touched(notebooks: Path, tmp_path: Path) -> None:
    place = tmp_path / "workspace"
    open_workspace(place)
    change(place / "02_awq.ipynb", "# the reader's")
    for lesson in ("01_principles", "02_awq"):
        change(notebooks / f"{lesson}.ipynb", "# the new version's")
    assert open_workspace(place) == ["02_awq"]
    assert "the new version's" in (place / "01_principles.ipynb").read_text()
    assert "the new version's" not in (place / "02_awq.ipynb").read_text()
    assert "the reader's" in (place / "02_awq.ipynb").read_text()


def test_afresh_sets_the_readers_copy_aside(notebooks: Path, tmp_path: Path) -> None:
    place = tmp_path / "workspace"
    open_workspace(place)
    untouched = (place / "03_gptq.ipynb").stat().st_mtime_ns
    for text in ("# once", "# twice"):
        change(place / "02_awq.ipynb", text)
        (aside,) = start_afresh(["02_awq"], place)
        assert aside.parent == place / ASIDE
        assert text in aside.read_text()
        assert text not in (place / "02_awq.ipynb").read_text()
    assert len(list((place / ASIDE).iterdir())) == 2
    assert (place / "03_gptq.ipynb").stat().st_mtime_ns == untouched
    assert open_workspace(place) == []


def test_a_copy_that_is_gone_comes_back(notebooks: Path, tmp_path: Path) -> None:
    place = tmp_path / "workspace"
    open_workspace(place)
    (place / "02_awq.ipynb").unlink()
    assert open_workspace(place) == []
    assert (place / "02_awq.ipynb").exists()
    assert set(json.loads((place / ".lessons.json").read_text())) == set(lesson_names())


def test_french_copies_lie_beside_the_english_ones(notebooks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "workspace"
    open_workspace(place)
    english = (place / "02_awq.ipynb").read_text()
    monkeypatch.setenv(VARIABLE, "fr")
    assert open_workspace(place) == []
    assert sorted(file.stem for file in (place / "fr").glob("*.ipynb")) == lesson_names()
    french = nbformat.read(place / "fr" / "02_awq.ipynb", as_version=4)
    assert "[← 1. Principes" in french.cells[0].source
    assert "[Sommaire](/qlab/)" in french.cells[0].source
    text = "\n".join(cell.source for cell in french.cells if cell.cell_type == "markdown")
    assert "[texte de calibration](/qlab/glossary#calibration-text)" in text
    assert "What it shows" not in text
    change(place / "fr" / "02_awq.ipynb", "# the reader's")
    (aside,) = start_afresh(["02_awq"], place)
    assert aside.parent == place / "fr" / ASIDE
    assert (place / "02_awq.ipynb").read_text() == english
