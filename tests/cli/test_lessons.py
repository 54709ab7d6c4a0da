"""The lessons on the command line: the language that they are asked for in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qlab.cli import call
from qlab.workbook.batch import runner
from qlab.workbook.language import lessons
from qlab.workbook.language.spoken import VARIABLE, spoken
from qlab.workbook.reader import workspace


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "en")  # what a command sets is forgotten after the test


@pytest.mark.parametrize("command", [["run", "01"], ["lab"], ["afresh", "01"]])
def test_an_unknown_language_is_one_message(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")] if command[0] == "run" else []
    assert call([*command, *out, "--language", "xx"]) == 2
    assert "no language 'xx': expected en or fr" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_lessons_are_run_in_the_language_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[str] = []

    def run_lessons(*_: Any) -> list[Any]:
        found.append(spoken())
        return []

    monkeypatch.setattr(runner, "run_lessons", run_lessons)
    monkeypatch.setattr(lessons, "faults", lambda notebook, language: [f"{notebook.stem}: {language}"])
    for chosen in (["--language", "fr"], []):
        assert call(["run", "01", "--out", str(tmp_path / "out"), *chosen]) == 0
    monkeypatch.setenv(VARIABLE, "fr")
    assert call(["run", "01", "--out", str(tmp_path / "out")]) == 0  # from the environment
    assert found == ["fr", "fr", "fr"]
    assert "01_principles: 1 cells have no translation of their present text and stay English" in capsys.readouterr().err


def test_copies_come_back_in_the_language_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    monkeypatch.setattr(workspace, "start_afresh", lambda lessons: found.append(spoken()) or [])
    assert call(["afresh", "01", "--language", "fr"]) == 0
    assert found == ["fr"]
