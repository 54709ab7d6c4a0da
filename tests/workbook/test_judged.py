"""What lies at a place is judged once under the same conditions, and again where any of them changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qlab.evaluate.quality import Quality
from qlab.support import versions
from qlab.workbook.judged import judged

FOUND = Quality(12.5, 0.1, 100, 51, 0.01, 0.001, 0.9, 0.002, 0.001, [0.01, 0.02])


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "model" / "awq-w4g128"


def test_it_is_judged_once(place: Path) -> None:
    windows, asked = torch.arange(8).view(2, 4), []

    def judge() -> Quality:
        asked.append(1)
        return FOUND

    conditions = (place, {"model": "abc"}, "abc", windows, torch.float32, "cpu")
    assert judged(*conditions, judge) == judged(*conditions, judge) == FOUND
    assert len(asked) == 1
    changes = [
        (place, {"model": "abd"}, "abc", windows, torch.float32, "cpu"),
        (place, {"model": "abc"}, "abd", windows, torch.float32, "cpu"),
        (place, {"model": "abc"}, "abc", windows + 1, torch.float32, "cpu"),
        (place, {"model": "abc"}, "abc", windows.view(1, 8), torch.float32, "cpu"),
        (place, {"model": "abc"}, "abc", windows, torch.bfloat16, "cpu"),
        (place, {"model": "abc"}, "abc", windows, torch.float32, "cuda"),
    ]
    for changed in changes:
        judged(*changed, judge)
    assert len(asked) == 1 + len(changes)


def test_a_damaged_figure_is_found_again(place: Path) -> None:
    windows = torch.arange(8).view(2, 4)
    conditions = (place, {"model": "abc"}, "abc", windows, torch.float32, "cpu")
    judged(*conditions, lambda: FOUND)
    (kept,) = place.parent.glob(".*quality*")
    for damage in ("", "[]", '{"perplexity": 1, "more": 2}'):
        kept.write_text(damage)
        assert judged(*conditions, lambda: FOUND) == FOUND


def test_it_is_judged_again_where_the_code_has_changed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conditions = (place, {"model": "abc"}, "abc", torch.arange(8).view(2, 4), torch.float32, "cpu")
    judged(*conditions, lambda: FOUND)
    other = replace(FOUND, kl=0.5)
    assert judged(*conditions, lambda: other) == FOUND
    monkeypatch.setattr("qlab.workbook.judged.code_hash", lambda: "other")
    assert judged(*conditions, lambda: other) == other


def test_the_hash_of_the_code_is_of_what_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qlab").mkdir()
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    found = []
    for text in ("a = 1", "a = 2"):
        (tmp_path / "qlab" / "one.py").write_text(text)
        found.append(versions.code_hash.__wrapped__())
    assert len(set(found)) == 2
