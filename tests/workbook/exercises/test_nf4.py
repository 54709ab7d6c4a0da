"""Lesson 5's exercise: readers' ways to round to levels, and what each is told."""

from __future__ import annotations

from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from torch import nn

from qlab.methods.nf4 import normal_levels
from qlab.workbook.exercises.nf4 import WRITTEN, relative_error
from qlab.workbook.exercises.trial import Unwritten, fault_of
from qlab.workbook.reader.about import NOTEBOOKS


def by_lists(weights: Any, levels: Any) -> list[float]:
    absmax = max(abs(float(w)) for w in weights)
    if not absmax:
        return [0.0 for _ in weights]
    return [absmax * min(levels.tolist(), key=lambda level: abs(level - float(w) / absmax)) for w in weights]


def rounded(
    weights: Any, levels: Any, divide: str = "absmax", back: bool = True, codes: bool = False, below: bool = False, factor: float = 1
) -> Any:
    w, ladder = weights.numpy(), levels.numpy()
    by = {"absmax": np.abs(w).max(), "max": w.max(), "std": w.std(ddof=1), "nothing": 1.0}[divide] or 1.0
    scaled = w / by
    places = np.searchsorted(ladder, scaled + 1e-6, side="right") - 1 if below else np.abs(scaled[:, None] - ladder).argmin(1)
    return places if codes else ladder[places.clip(0)] * (by if back else 1) * factor


@pytest.mark.parametrize("right", [by_lists, rounded])
def test_a_right_one_passes(right: Any) -> None:
    assert fault_of(WRITTEN, right) is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"divide": "max"}, "Take the largest magnitude"),
        ({"divide": "std"}, "standard deviation"),
        ({"divide": "nothing"}, "Divide the block by its absmax first"),
        ({"back": False}, "missing on the way back"),
        ({"codes": True}, "These are the codes"),
        ({"below": True}, "level below"),
        ({"factor": 1.1}, "is no level times absmax, which is 0.9 here"),
    ],
)
def test_a_wrong_one_is_told_what_is_wrong(wrong: dict[str, Any], said: str) -> None:
    fault = fault_of(WRITTEN, lambda weights, levels: rounded(weights, levels, **wrong))
    assert fault is not None
    assert said in fault.said


def test_a_block_of_zeros_is_shown() -> None:
    fault = fault_of(WRITTEN, lambda weights, levels: weights / weights.abs().max() * np.nan)
    assert fault is not None
    assert "divided by zero" in fault.said


def test_an_empty_one_is_not_wrong() -> None:
    with pytest.raises(Unwritten):
        fault_of(WRITTEN, lambda weights, levels: None)


def test_the_answer_on_a_model_is_what_a_right_function_finds() -> None:
    weight = torch.randn(70, 96, generator=torch.Generator().manual_seed(0))
    back = torch.stack([torch.as_tensor(rounded(block, normal_levels())) for block in weight[:64].reshape(-1, 64)]).view(64, 96)
    error = 100 * float((back - weight[:64]).square().sum() / weight[:64].square().sum())
    assert relative_error(weight) == pytest.approx(error, rel=1e-3)


def test_levels_lie_where_the_lesson_s_weights_do() -> None:
    (cell,) = (cell.source for cell in nbformat.read(NOTEBOOKS / "05_nf4.ipynb", as_version=4).cells if "normal_levels()" in cell.source)
    names: dict[str, Any] = {"layers": {"any": nn.Linear(64, 128, device="meta")}, "normal_levels": normal_levels}
    exec(compile(cell, "05_nf4", "exec"), names)
    assert names["levels"].device == names["weight"].device == torch.device("meta")
