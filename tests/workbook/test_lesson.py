"""What every lesson has: here, the noise floor beside its tables of quality."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlab.evaluate.arithmetic import FLOOR
from qlab.models.opening import OpenedModel
from qlab.show.tables import quality_table
from qlab.workbook.lesson import open_lesson


def test_a_table_of_quality_ends_with_the_noise_floor(tiny: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lesson = open_lesson(str(tiny.path), "docstrings", 2, 32, "python-reference", 3, 32, str(tmp_path), "cpu")
    assert lesson.floor is lesson.floor  # measured once
    quality = {"itself": lesson.evaluate("itself", lesson.reference)} | lesson.floor
    assert (quality["itself"].kl or 0) < 1e-8 < (quality[FLOOR].kl or 0)
    again = open_lesson(str(tiny.path), "docstrings", 2, 32, "python-reference", 3, 32, str(tmp_path), "cpu")
    monkeypatch.setattr("qlab.workbook.lesson.measure_quality", None)  # another lesson takes what this one measured
    assert again.floor == lesson.floor
    assert FLOOR in quality_table(quality).to_html().partition("itself")[2]


def test_a_larger_model_is_measured_on_half_the_windows_and_it_is_said(
    tiny: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def opened(windows: int) -> int:
        return len(open_lesson(str(tiny.path), "docstrings", 2, 32, "python-reference", windows, 32, str(tmp_path), "cpu").evaluation)

    assert opened(0) == 16
    assert "windows, as the model" not in capsys.readouterr().out
    monkeypatch.setattr("qlab.workbook.lesson.LARGE", 1e3)
    assert opened(0) == 8
    assert "measured on 8 windows" in capsys.readouterr().out
    assert opened(5) == 5
