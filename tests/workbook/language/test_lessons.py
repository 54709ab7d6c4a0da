"""Lessons in other languages: each text of a lesson translated as it stands now, its formulas, links and code kept."""

from __future__ import annotations

import ast
import re
import shutil
from collections import Counter
from pathlib import Path

import nbformat
import pytest

from qlab.workbook.language.lessons import commented, faults, markdown_cells, read_lesson, remarks, sections_of
from qlab.workbook.language.spoken import VARIABLE, languages
from qlab.workbook.reader.about import NOTEBOOKS, about, lesson_names

OTHERS = languages()[1:]
LESSON = "01_principles"
# What is the same in every language: formulas, code, where links lead, HTML.
KEPT = re.compile(r"\$\$.*?\$\$|\$[^$\n]+\$|```.*?```|`[^`]*`|(?<=\]\()[^)]*|<[^>]+>", re.S)


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    """A lesson with its translations, to be changed."""
    for language in OTHERS:
        (tmp_path / language).mkdir()
        shutil.copy(NOTEBOOKS / language / f"{LESSON}.md", tmp_path / language)
    return Path(shutil.copy(NOTEBOOKS / f"{LESSON}.ipynb", tmp_path))


@pytest.mark.parametrize("language", OTHERS)
@pytest.mark.parametrize("lesson", lesson_names())
def test_every_text_of_a_lesson_is_translated_as_it_stands(lesson: str, language: str) -> None:
    found = faults(NOTEBOOKS / f"{lesson}.ipynb", language)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("language", OTHERS)
@pytest.mark.parametrize("lesson", lesson_names())
def test_formulas_code_and_links_stay(lesson: str, language: str) -> None:
    english = {cell.id: cell.source for cell in markdown_cells(nbformat.read(NOTEBOOKS / f"{lesson}.ipynb", as_version=4))}
    for section in sections_of(NOTEBOOKS / f"{lesson}.ipynb", language):
        assert Counter(KEPT.findall(section.text)) == Counter(KEPT.findall(english[section.cell])), f"{lesson}, cell {section.cell}"
        headings = [re.findall(r"^(#+)(?: (\d\S*))?", text, re.M) for text in (section.text, english[section.cell])]
        assert headings[0] == headings[1], f"{lesson}, cell {section.cell}"


@pytest.mark.parametrize("lesson", lesson_names())
def test_french_has_its_spaces_and_quotes(lesson: str) -> None:
    for section in sections_of(NOTEBOOKS / f"{lesson}.ipynb", "fr"):
        text = KEPT.sub("", section.text)
        assert re.findall(r".{0,20}(?: [:;?!»%]|« | \"|“).{0,20}", text) == [], f"{lesson}, cell {section.cell}"


def test_a_text_that_changed_is_named_and_stays_english(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "fr")
    assert faults(notebook, "fr") == []
    content = nbformat.read(notebook, as_version=4)
    changed, gone, *_ = markdown_cells(content)
    changed.source = changed.source.replace("16 levels", "16 steps")
    content.cells = [cell for cell in content.cells if cell.id != gone.id]
    content.cells.append(nbformat.v4.new_markdown_cell("New.", id="new-text"))
    nbformat.write(content, notebook)
    stale, missing, left = faults(notebook, "fr")
    assert stale.startswith(f"lesson {LESSON}, cell {changed.id}: the English text has changed since it was translated")
    assert missing.startswith(f"lesson {LESSON}, cell new-text: there is no translation")
    assert left == f"lesson {LESSON} has no cell {gone.id}: delete its section in notebooks/fr/{LESSON}.md"
    texts = {cell.id: cell.source for cell in markdown_cells(read_lesson(notebook))}
    assert "16 steps" in texts[changed.id]
    assert texts["new-text"] == "New."
    assert texts["8af9967b"].startswith("## 1.1 Un poids est un nombre") if gone.id != "8af9967b" else "8af9967b" not in texts
    # The line that the message gives is what makes it right.
    file = notebook.parent / "fr" / f"{LESSON}.md"
    text = file.read_text(encoding="utf-8").replace(f"<!-- {gone.id}", f"<!-- new-text {missing.split()[-2]} -->\nNeuf.\n\n<!-- {gone.id}")
    text = re.sub(rf"<!-- {changed.id} \w+ -->", stale[stale.index("<!--") :], text)
    file.write_text(text, encoding="utf-8")
    assert faults(notebook, "fr") == [left]


def program(source: str) -> str:
    """What code does, without its comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            del node.body[0]
    return ast.dump(tree)


def cells_of(content: nbformat.NotebookNode) -> list[tuple[str, str, str]]:
    return [(cell.id, cell.cell_type, program(cell.source) if cell.cell_type == "code" else "") for cell in content.cells]


def test_code_and_figures_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for lesson in lesson_names():
        english = nbformat.read(NOTEBOOKS / f"{lesson}.ipynb", as_version=4)
        monkeypatch.setenv(VARIABLE, "fr")
        french = read_lesson(NOTEBOOKS / f"{lesson}.ipynb")
        nbformat.validate(french)
        assert cells_of(french) == cells_of(english)


CODE = '''
def half(n):
    """A number, x → its half."""
    text = "# no comment"  # your lines
    raise NotImplementedError  # your lines
# half(1)  # one way to write it
'''


def test_comments_and_docstrings_are_said_and_the_program_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [text for _, _, text in remarks(CODE)] == ["A number, x → its half.", "your lines", "your lines", "one way to write it"]
    monkeypatch.setenv(VARIABLE, "en")
    assert commented(CODE) == CODE
    monkeypatch.setenv(VARIABLE, "fr")
    for kept in ("!echo it's a command", '"""Lines\nof text."""'):
        assert commented(kept) == kept
    said = commented(CODE)
    assert '"# no comment"  # vos lignes\n    raise NotImplementedError  # vos lignes\n# half(1)  # une façon de l\'écrire\n' in said
    assert "A number, x → its half." in said  # what has no translation stays
    assert program(said) == program(CODE)


@pytest.mark.parametrize("lesson", lesson_names())
def test_a_lesson_says_in_french_what_it_is_about(lesson: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "fr")
    found = about(NOTEBOOKS / f"{lesson}.ipynb")
    assert found.number == str(int(lesson[:2]))
    assert found.aim.endswith(".")
    assert "sur deux cœurs" in found.time
    assert found.need
    assert "*" not in found.title + found.aim.replace("*votre*", "").replace("*", "") + found.need.replace("*", "")
