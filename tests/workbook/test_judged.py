"""An artifact is judged once under the same conditions, and again where any of them changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from qlab.artifacts.artifact import Artifact
from qlab.evaluate.quality import Quality
from qlab.workbook.judged import judged

FOUND = Quality(12.5, 0.1, 100, 51, 0.01, 0.001, 0.9, 0.002, 0.001, [0.01, 0.02])


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return Artifact(tmp_path / "awq-w4g128", {"inputs": {"model": "abc"}}, {})


def test_it_is_judged_once(artifact: Artifact) -> None:
    windows, asked = torch.arange(8).view(2, 4), []

    def judge() -> Quality:
        asked.append(1)
        return FOUND

    conditions = (artifact, "abc", windows, torch.float32, "cpu")
    assert judged(*conditions, judge) == judged(*conditions, judge) == FOUND
    assert len(asked) == 1
    changes = [
        (dataclasses.replace(artifact, manifest={"inputs": {"model": "abd"}}), "abc", windows, torch.float32, "cpu"),
        (artifact, "abd", windows, torch.float32, "cpu"),
        (artifact, "abc", windows + 1, torch.float32, "cpu"),
        (artifact, "abc", windows.view(1, 8), torch.float32, "cpu"),
        (artifact, "abc", windows, torch.bfloat16, "cpu"),
        (artifact, "abc", windows, torch.float32, "cuda"),
    ]
    for changed in changes:
        judged(*changed, judge)
    assert len(asked) == 1 + len(changes)


def test_a_damaged_figure_is_found_again(artifact: Artifact) -> None:
    windows = torch.arange(8).view(2, 4)
    conditions = (artifact, "abc", windows, torch.float32, "cpu")
    judged(*conditions, lambda: FOUND)
    (kept,) = artifact.path.parent.glob(".*quality*")
    for damage in ("", "[]", '{"perplexity": 1, "more": 2}'):
        kept.write_text(damage)
        assert judged(*conditions, lambda: FOUND) == FOUND
