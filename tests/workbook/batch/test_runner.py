"""The runner on small notebooks of its own: failure, dependence, resumption."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from papermill import engines
from rich.console import Console

from qlab.models.opening import OpenedModel
from qlab.recipes import Recipe
from qlab.show.progress import LessonProgress
from qlab.show.site.lesson_page import lesson_page
from qlab.support.errors import UserError
from qlab.workbook.batch import kernels
from qlab.workbook.batch import runner as workbook
from qlab.workbook.batch.runner import DONE, FAILED, LEFT_OUT, SKIPPED, Outcome, run_lessons, without_paths
from qlab.workbook.language.lessons import hash_of
from qlab.workbook.language.spoken import VARIABLE


@pytest.fixture
def lessons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: OpenedModel) -> dict[str, dict[str, Any]]:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    body = "from qlab.workbook.record import record\nrecord('value', number * 2)"
    for name, source in {"01_fine": body, "02_awq": "raise ValueError('no luck')", "07_benchmarks": body}.items():
        parameters = new_code_cell("model = ''  # m\nnumber = 1  # n")
        parameters.metadata["tags"] = ["parameters"]
        notebook = new_notebook(cells=[parameters, new_code_cell(source)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, folder / f"{name}.ipynb")
    monkeypatch.setattr(workbook, "NOTEBOOKS", folder)
    return {name: {"model": str(tiny.path), "number": 21} for name in ("01_fine", "02_awq", "07_benchmarks")}


def test_a_failure_is_reported_and_what_needs_it_is_not_run(lessons: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    seen: list[tuple[Any, ...]] = []
    fine, failed, skipped = run_lessons(lessons, tmp_path / "out", False, lambda *news: seen.append(news))
    assert (fine.state, fine.records) == (DONE, {"value": 42})
    assert fine.peak_bytes > 10e6 or not Path("/proc/self/status").exists()
    assert (failed.state, failed.error) == (FAILED, "ValueError: no luck")
    assert failed.cell == 3  # the parameters, the injected ones, then this
    assert (skipped.state, skipped.error) == (SKIPPED, "needs 02_awq, which did not finish")
    assert ("01_fine", 3, 3) in seen
    assert [news for news in seen if len(news) == 4] == [
        ("01_fine", 1, 1, DONE),
        ("02_awq", 1, 1, FAILED),
        ("07_benchmarks", 1, 1, SKIPPED),
    ]


def test_a_notebook_is_written_at_its_begin_and_its_end_and_a_failed_one_is_kept(
    lessons: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, write = list[str](), engines.write_ipynb

    def counted(notebook: nbformat.NotebookNode, place: str) -> None:
        written.append(Path(place).stem)
        write(notebook, place)

    monkeypatch.setattr(engines, "write_ipynb", counted)
    run_lessons(lessons, tmp_path / "out", False, lambda *_: None)
    assert {name: written.count(name) for name in lessons} == {"01_fine": 2, "02_awq": 2, "07_benchmarks": 0}
    assert "no luck" in (tmp_path / "out" / "notebooks" / "02_awq.ipynb").read_text()


def test_a_lesson_on_what_a_model_cannot_be_is_left_out_and_what_needs_it_is_run(
    lessons: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(recipe: Recipe, source: OpenedModel) -> None:
        raise UserError(f"no {recipe.name} of {source.name}")

    monkeypatch.setattr(workbook, "SUBJECTS", {"02_awq": "q4_k_m"})
    monkeypatch.setattr(workbook, "check_recipe", check)
    fine, apart, after = run_lessons(lessons, tmp_path / "out", False, lambda *_: None)
    assert (fine.state, apart.state, after.state) == (DONE, LEFT_OUT, DONE)
    assert apart.error.startswith("no q4_k_m of ")
    assert not apart.broken


def test_a_lesson_counts_as_done_once_its_figures_are_kept(lessons: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    kept: list[Any] = []

    def killed(outcome: Outcome) -> None:
        raise KeyboardInterrupt

    chosen = {"01_fine": lessons["01_fine"]}
    with pytest.raises(KeyboardInterrupt):
        run_lessons(chosen, tmp_path / "out", False, lambda *_: None, killed)
    for _ in range(2):  # kept when it is done, and not when it was done before
        run_lessons(chosen, tmp_path / "out", False, lambda *_: None, lambda outcome: kept.append(outcome.records))
        assert kept == [{"value": 42}]


def test_a_full_disk_in_a_lesson_is_told_like_any_other(lessons: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    notebook = workbook.NOTEBOOKS / "02_awq.ipynb"
    notebook.write_text(notebook.read_text().replace("raise ValueError('no luck')", "open('/dev/full', 'wb', buffering=0).write(b'x')"))
    (found,) = run_lessons({"02_awq": lessons["02_awq"]}, tmp_path / "out", False, lambda *_: None)
    assert (found.state, found.cell) == (FAILED, 3)
    assert found.error.startswith("the disk is full (No space left on device)")


def test_a_long_name_for_temporary_files_is_no_obstacle(
    lessons: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (long := tmp_path / ("a" * 100)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    kernels.private_folder.cache_clear()
    try:
        (found,) = run_lessons({"01_fine": lessons["01_fine"]}, tmp_path / "out", False, lambda *_: None)
    finally:
        kernels.private_folder().remove()
        kernels.private_folder.cache_clear()
    assert found.state == DONE


ENDS = {
    "en": ["01_fine: 2 of 9 cells, 61 s", "01_fine: done, 70 s (1/2)", "02_awq: failed, 30 s (2/2)"],
    "fr": ["01_fine\u00a0: 2 cellules sur 9, 61 s", "01_fine\u00a0: finie, 70 s (1/2)", "02_awq\u00a0: échouée, 30 s (2/2)"],
}


@pytest.mark.parametrize("language", ENDS)
def test_the_log_says_how_a_lesson_ended(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, language)
    out, times = io.StringIO(), iter([0.0, 59.0, 61.0, 62.0, 70.0, 100.0])
    with LessonProgress(["01_fine", "02_awq"], Console(file=out), lambda: next(times)) as progress:
        for news in (("01_fine", 1, 9), ("01_fine", 2, 9), ("01_fine", 3, 9), ("01_fine", 1, 1, DONE), ("02_awq", 1, 1, FAILED)):
            progress.update(*news)
    assert out.getvalue().splitlines() == ENDS[language]


def test_the_finished_notebook_names_no_folder_of_its_runner(lessons: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    run_lessons({"01_fine": lessons["01_fine"]}, tmp_path / "out", False, lambda *_: None)
    text = (tmp_path / "out" / "notebooks" / "01_fine.ipynb").read_text()
    assert "papermill" not in text
    assert str(tmp_path.parent.parent) not in text


def test_only_what_changed_is_done_again(lessons: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    def run(fresh: bool = False) -> list[bool]:
        return [outcome.earlier for outcome in run_lessons(chosen, tmp_path / "out", fresh, lambda *_: None)]

    chosen = {name: lessons[name] for name in ("01_fine", "07_benchmarks")}
    assert run() == [False, False]
    assert run() == [True, True]
    chosen["01_fine"]["number"] = 4
    assert run() == [False, True]
    assert run(fresh=True) == [False, False]
    (tmp_path / "out" / "notebooks" / "01_fine.json").unlink()  # as after an interruption
    assert run() == [False, True]


def test_a_lesson_runs_in_french(lessons: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = workbook.NOTEBOOKS / "01_fine.ipynb"
    content = nbformat.read(notebook, as_version=4)
    content.cells.insert(0, new_markdown_cell("# 1. A title\n\n## The scale", id="title"))
    content.cells.append(new_code_cell("from qlab.workbook.language.spoken import gettext\nprint(gettext('Right.'))"))
    nbformat.write(content, notebook)
    (workbook.NOTEBOOKS / "fr").mkdir()
    section = f"<!-- title {hash_of(content.cells[0].source)} -->\n# 1. Un titre\n\n## La taille\n\nUne échelle.\n"
    (workbook.NOTEBOOKS / "fr" / "01_fine.md").write_text(section, encoding="utf-8")
    chosen = {"01_fine": lessons["01_fine"]}
    pages = []
    for language in ("en", "fr"):  # one after the other: what was done in another language is done again
        monkeypatch.setenv(VARIABLE, language)
        (found,) = run_lessons(chosen, tmp_path / "out", False, lambda *_: None)
        assert (found.state, found.earlier, found.records) == (DONE, False, {"value": 42})
        pages.append(BeautifulSoup(lesson_page(tmp_path / "out" / "notebooks" / "01_fine.ipynb", []), "html.parser"))
    assert [page.html["lang"] for page in pages] == ["en", "fr"]
    assert [page.title.get_text() for page in pages] == ["1. A title · qlab", "1. Un titre · qlab"]
    assert all(word in pages[1].get_text() for word in ("Juste.", "Glossaire", "Sur cette page"))
    assert pages[1].select_one('main a[href="glossary.html#scale"]').get_text() == "échelle"


@pytest.mark.parametrize(
    ("injected", "kept"),
    [
        ('"/home/me/a.txt"', '".../a.txt"'),
        ('"/home/me/models/tiny/"', '".../tiny"'),
        ('"/home/me/a.txt:2,/home/me/b.txt"', '".../a.txt:2,.../b.txt"'),
        ('"docstrings,/home/me/b.txt:3"', '"docstrings,.../b.txt:3"'),
        ('"/home/me, you/a.txt,prompts"', '".../a.txt,prompts"'),
        ('"prompts"', '"prompts"'),
    ],
)
def test_folders_of_this_machine_are_taken_out_of_what_was_injected(tmp_path: Path, injected: str, kept: str) -> None:
    cell = new_code_cell(f"text = {injected}", metadata={"tags": ["injected-parameters"]})
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    without_paths(tmp_path / "a.ipynb")
    assert nbformat.read(tmp_path / "a.ipynb", as_version=4).cells[0].source == f"text = {kept}"
