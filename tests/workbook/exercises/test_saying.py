"""A verdict is shown as text, never as HTML of the reader's, and matrices are written small."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qlab.workbook.exercises import saying
from qlab.workbook.exercises.saying import MOST, WRONG, say, written_out


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.tensor([[1.0, -0.25], [1 / 3, 2.0]], requires_grad=True), "[[ 1.    -0.25 ]\n [ 0.333  2.   ]]"),
        (np.array([1, 2]), "[1 2]"),
        (1 / 3, "0.333333"),
        (7, "7"),
        (frozenset({"b", "a"}), "a, b"),
        ([], "(none)"),
        ((1.0, 2.0), "(1.0, 2.0)"),
    ],
)
def test_values_are_written_out(value: Any, text: str) -> None:
    assert written_out(value) == text


def test_large_ones_are_shortened() -> None:
    assert len(written_out(torch.zeros(MOST, MOST))) < 1500
    assert len(written_out("x" * 100_000)) <= 2000


def test_what_is_shown_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(saying, "display", lambda html: shown.append(html.data))
    say(WRONG, "<b>", {"<i>": "<script>"})
    assert "&lt;b&gt;" in shown[0]
    assert "&lt;i&gt;" in shown[0]
    assert "<script>" not in shown[0]
    say(WRONG, "alone")
    assert "<table>" not in shown[1]
