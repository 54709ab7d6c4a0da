"""Progress is kept for the reader's copies alone, survives wrong answers, and is erased by one command."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlab.support.errors import UserError
from qlab.workbook.exercises import answer
from qlab.workbook.reader import progress
from qlab.workbook.reader.progress import erase_progress, keep_finished, keep_prediction, keep_right, kept_prediction, read_progress


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace whose second lesson is open."""
    monkeypatch.setenv("JPY_SESSION_NAME", str(tmp_path / "02_awq.ipynb"))
    return tmp_path


def test_what_is_right_is_kept_once(place: Path) -> None:
    for _ in range(2):
        keep_right("bits", place)
    keep_right("GB", place)
    assert read_progress(place) == {"02_awq": {"right": ["bits", "GB"], "finished": False, "predicted": {}}}
    keep_finished(place)
    assert read_progress(place)["02_awq"]["finished"]
    erase_progress(place)
    assert read_progress(place) == {}


def test_a_french_copy_counts_as_the_lesson(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_right("bits", place)
    monkeypatch.setenv("JPY_SESSION_NAME", str(place / "fr" / "02_awq.ipynb"))
    keep_right("GB", place)
    assert read_progress(place)["02_awq"]["right"] == ["bits", "GB"]


@pytest.mark.parametrize(
    "notebook", ["", "/elsewhere/02_awq.ipynb", "{}/set-aside/02_awq.ipynb", "{}/fr/set-aside/02_awq.ipynb", "{}/console"]
)
def test_only_copies_of_the_workspace_count(notebook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", notebook.format(tmp_path))
    keep_right("bits", tmp_path)
    keep_finished(tmp_path)
    assert not (tmp_path / progress.FILE).exists()


def test_a_right_answer_is_noted_and_a_wrong_one_is_not(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "keep_right", lambda name: keep_right(name, place))
    answer.check("bits", 3, 4, "hint")
    answer.check("bits", None, 4, "hint")
    assert read_progress(place) == {}
    answer.check("bits", 4, 4, "hint")
    answer.check("bits", 3, 4, "hint")
    assert read_progress(place)["02_awq"]["right"] == ["bits"]


def test_a_prediction_is_kept_and_may_be_changed(place: Path) -> None:
    assert kept_prediction("How much?", place) is None
    keep_prediction("How much?", 12.5, place)
    keep_prediction("How much?", 20.0, place)
    keep_prediction("Which?", "GPTQ", place)
    assert kept_prediction("How much?", place) == 20.0
    assert read_progress(place)["02_awq"] == {"right": [], "finished": False, "predicted": {"How much?": 20.0, "Which?": "GPTQ"}}


def test_progress_of_an_earlier_version_goes_on(place: Path) -> None:
    (place / progress.FILE).write_text('{"02_awq": {"right": ["bits"], "finished": true}}')
    keep_prediction("Which?", "GPTQ", place)
    assert read_progress(place)["02_awq"] == {"right": ["bits"], "finished": True, "predicted": {"Which?": "GPTQ"}}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"02_awq": 1}',
        '{"02_awq": {"right": 3, "finished": false}}',
        '{"02_awq": {"right": [], "finished": false, "predicted": 3}}',
    ],
)
def test_a_damaged_file_says_what_to_do(content: str, place: Path) -> None:
    (place / progress.FILE).write_text(content)
    with pytest.raises(UserError, match="'qlab progress --erase' begins anew"):
        read_progress(place)
    erase_progress(place)
    assert read_progress(place) == {}
