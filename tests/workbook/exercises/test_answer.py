"""Exercises say what is wrong with an answer."""

from __future__ import annotations

import pytest

from qlab.workbook import exercise


@pytest.mark.parametrize(
    ("answer", "expected", "said"),
    [
        (None, 2.0, "Not answered yet"),
        (2.01, 2.0, "Right."),
        (3, 2.0, "3 GB is too large. Halve it."),
        (1, 2.0, "too small"),
        ("<b>", 2.0, "&lt;b&gt;"),
    ],
)
def test_what_is_said(answer: object, expected: float, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(exercise, "display", lambda html: shown.append(html.data))
    exercise.check("GB", answer, expected, "Halve it.")  # type: ignore[arg-type]
    assert said in shown[0]
