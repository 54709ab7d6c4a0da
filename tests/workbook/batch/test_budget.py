"""What a lesson's memory is predicted to be: by what it holds, and refused where the machine has less. `make bench-lessons` measures it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from qlab.models.opening import OpenedModel
from qlab.support.errors import UserError
from qlab.walk.by_block import fp32_bytes
from qlab.workbook.batch import budget
from qlab.workbook.batch.budget import lesson_budget
from qlab.workbook.reader.about import lesson_names

CHOSEN: dict[str, Any] = {"calibration_windows": 4, "calibration_length": 64, "evaluation_windows": 3, "evaluation_length": 32}


@pytest.mark.parametrize("lesson", lesson_names())
def test_every_lesson_has_a_budget(lesson: str, tiny: OpenedModel) -> None:
    found = lesson_budget(lesson, tiny, CHOSEN)
    assert found.model == fp32_bytes(tiny)
    assert 300e6 < found.total < 1e9
    assert found.beside > 100e6
    assert f"{lesson}: " in found.text(lesson)


def test_a_budget_grows_with_what_a_lesson_holds(tiny: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lesson_budget("02_awq", tiny, CHOSEN)
    longer = lesson_budget("02_awq", tiny, CHOSEN | {"evaluation_windows": 30})
    assert longer.predictions == pytest.approx(10 * first.predictions)
    monkeypatch.setattr(budget, "IN_MEMORY", 10 * first.predictions - 1)
    assert lesson_budget("02_awq", tiny, CHOSEN | {"evaluation_windows": 30}).predictions == 0  # in a file
    widths = [shape[1] for shape in tiny.layout.linear.values()]
    assert first.statistics == sum(4 * width**2 for width in widths)
    monkeypatch.setattr(budget, "sampled", lambda count: [0])
    assert lesson_budget("02_awq", tiny, CHOSEN).statistics == pytest.approx(first.statistics / tiny.layout.count)
    monkeypatch.setattr(budget, "LARGE", 0)
    assert lesson_budget("01_principles", tiny, CHOSEN).work < lesson_budget("05_nf4", tiny, CHOSEN).work


def test_a_lesson_that_does_not_fit_is_refused(tiny: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    found = replace(lesson_budget("01_principles", tiny, CHOSEN), model=64e9)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=16e9))
    with pytest.raises(UserError, match=r"01_principles: 6\d.\d\d GB of memory are needed and 16.00 GB free here, .* a larger machine"):
        found.check("01_principles")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=160e9))
    found.check("01_principles")
