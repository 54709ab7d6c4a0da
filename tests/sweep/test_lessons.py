"""Lessons as jobs of a sweep: checked with their lines, each after those that it needs, and their figures in a table with links."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qlab.cli.lessons import told
from qlab.show.site.sweep_page import lesson_cells
from qlab.support.errors import UserError
from qlab.sweep.jobs import Job, opened
from qlab.sweep.lessons import lesson_jobs
from qlab.sweep.plan import Sweep, read_sweep
from qlab.sweep.results import Result, Store, figures_of, lessons_table
from qlab.workbook.batch.runner import FAILED, Outcome

PLAN = """models: [embedded]
lessons:
  04_gguf: {evaluation_windows: 4}
  06_deployment:
    context: 512
    answer_tokens: 8
"""


def jobs_of(lessons: dict[str, Any], out: Path) -> list[Job]:
    sweep = Sweep.model_validate({"models": ["embedded"], "lessons": lessons})
    return lesson_jobs(sweep, opened(sweep), out)


def test_a_lesson_is_a_command_with_its_parameters_after_what_it_needs(tmp_path: Path) -> None:
    second, first = jobs_of({"06_deployment": {"context": 512}, "04_gguf": {"evaluation_windows": 4}}, tmp_path)[::-1]
    assert first.words[:2] == ("run", "04_gguf")
    assert first.words[-4:] == ("-p", "device=cpu", "-p", "evaluation_windows=4")
    assert str(tmp_path / "lessons") in first.words[first.words.index("--out") + 1]
    assert (first.needs, second.needs) == ((), (first.key,))
    assert jobs_of({"06_deployment": {}}, tmp_path)[0].needs == ()  # it makes itself what lesson 4 would have made
    assert jobs_of({"04_gguf": {"evaluation_windows": 5}}, tmp_path)[0].key != first.key
    assert jobs_of({"04_gguf": {"evaluation_windows": 4}}, tmp_path / "elsewhere")[0].key == first.key


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("04_gguf", "04_ggml", "line 3: no lesson '04_ggml': expected one of 01_principles"),
        ("context", "contxt", "line 5: no lesson to run has a parameter 'contxt'"),
        ("512", "many", "line 5: parameter context is 'many': expected a whole number"),
        ("512", "0", "line 5: parameter context is 0: expected a whole number from 1"),
        ("context: 512", "model: x", "line 5: a lesson runs on each of the models above"),
        ("{evaluation_windows: 4}", "[4]", "line 3: lessons.04_gguf: Input should be a valid dictionary"),
        (PLAN.partition("\n")[2], "", "line 1: nothing to do: expected recipes, lessons or both"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN)
    read_sweep(file)
    file.write_text(PLAN.replace(old, new))
    with pytest.raises(UserError) as refused:
        read_sweep(file)
    assert message in str(refused.value)


def test_figures_of_lessons_are_rows_with_the_lessons_page(tmp_path: Path) -> None:
    outcome = Outcome("04_gguf", "done", {}, 60.0, records={
        "quality/q4_k_m": {"kl": 0.01, "kl_stderr": 0.001, "perplexity": 20.0, "stderr": 1.0, "top1": 0.9, "kl_windows": [0.1]}, "bits": {},
    })  # fmt: skip
    printed = figures_of("some lines\n" + json.dumps({"lessons": {"04_gguf": told(outcome)}}))
    assert "kl_windows" not in printed["lessons"]["04_gguf"]["quality"]["q4_k_m"]
    first, second = jobs_of({"04_gguf": {}, "06_deployment": {}}, tmp_path)
    store = Store(tmp_path / "jobs")
    store.folder.mkdir()
    store.write(first.key, Result(job=first.name, state="done", seconds=70.0, figures=printed))
    store.write(second.key, Result(job=second.name, state=FAILED, seconds=5.0, error="failed in cell 3"))
    Path(first.place).parent.mkdir(parents=True)
    Path(first.place).write_text("page")
    rows = lessons_table([first, second], store, tmp_path).to_dict("records")
    assert [(row["lesson"], row["state"], row["why"]) for row in rows] == [
        ("04_gguf", "done", ""), ("06_deployment", FAILED, "failed in cell 3"),
    ]  # fmt: skip
    assert (rows[0]["measured"], rows[0]["kl"], rows[0]["perplexity"]) == ("q4_k_m", 0.01, 20.0)
    assert rows[0]["page"] == f"lessons/{first.model}/04_gguf/04_gguf.html"
    assert rows[1]["page"] == ""


def test_a_lesson_that_left_its_model_out_says_why(tmp_path: Path) -> None:
    (job,) = jobs_of({"04_gguf": {}}, tmp_path)
    store = Store(tmp_path)
    figures = {"lessons": {"04_gguf": told(Outcome("04_gguf", "left out", {}, error="no GGUF of this model"))}}
    store.write(job.key, Result(job=job.name, state="done", seconds=1.0, figures=figures))
    (row,) = lessons_table([job], store, tmp_path).to_dict("records")
    assert lesson_cells(row)[1][2] == "no GGUF of this model"
