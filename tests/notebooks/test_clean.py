"""The notebooks in git: clean, short, parameterized."""

from __future__ import annotations

import nbformat
import pytest

from qlab.workbook.reader.about import NOTEBOOKS, exercises_of, lesson_names


@pytest.mark.parametrize("lesson", lesson_names())
def test_a_notebook_is_clean_and_its_cells_short(lesson: str) -> None:
    notebook = nbformat.read(NOTEBOOKS / f"{lesson}.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    # The parameters are a list of literals, one a line: as many as a lesson has.
    assert max(len(cell.source.splitlines()) for cell in code if "parameters" not in cell.metadata.get("tags", [])) <= 15
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "explore(" in text
    assert text.count("prediction = predict(") == text.count("prediction.held_against(") == 1
    assert all(f'exercise.{help}("{lesson}"' in text for help in ("check_written", "hint", "solution"))
    assert ["raise NotImplementedError" in cell.source for cell in code if "exercise" in cell.metadata.get("tags", [])] == [True]
    assert "your model" in exercises_of(notebook)[-1]  # the last exercise is on the reader's own model
    assert f'recap("{lesson}")' in text


def test_there_are_seven() -> None:
    assert [name[3:] for name in lesson_names()] == ["principles", "awq", "gptq", "gguf", "nf4", "deployment", "benchmarks"]
