"""What lies at a place is judged once under the same conditions, and again where any of them changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qlab.evaluate.quality import Quality
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
