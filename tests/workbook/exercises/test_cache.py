"""Lesson 6's exercise: readers' sums of a KV cache, and what each is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qlab.plan.plan import SHAPES
from qlab.workbook.exercises.cache import WRITTEN, megabytes
from qlab.workbook.exercises.trial import Unwritten, fault_of


def test_a_right_one_passes() -> None:
    assert fault_of(WRITTEN, lambda s, context, users: np.prod([4, s.layers, s.kv_heads, s.head_size, context, users], dtype=float)) is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda s, c, u: 4 * s.layers * s.heads * s.head_size * c * u, "All heads are counted"),
        (lambda s, c, u: 4 * s.layers * s.hidden * c * u, "hidden size is counted|All heads are counted"),
        (lambda s, c, u: 2 * s.layers * s.kv_heads * s.head_size * c * u, "half of what is needed"),
        (lambda s, c, u: 32 * s.layers * s.kv_heads * s.head_size * c * u, "These are bits"),
        (lambda s, c, u: 4 * s.layers * s.kv_heads * s.head_size * c, "number of users is missing"),
        (lambda s, c, u: 4 * s.kv_heads * s.head_size * c * u, "number of layers is missing"),
        (lambda s, c, u: 4 * s.layers * s.kv_heads * s.head_size * c * u / 1e9, "These are GB"),
        (lambda s, c, u: 12 * s.layers * s.kv_heads * s.head_size * c * u, "3 times what the cache takes"),
        (lambda s, c, u: s.n_layers, "AttributeError"),
    ],
)
def test_a_wrong_one_is_told_what_is_wrong(wrong: Any, said: str) -> None:
    fault = fault_of(WRITTEN, wrong)
    assert fault is not None
    assert any(words in fault.said for words in said.split("|"))
    assert list(fault.case)[:3] == ["shape", "context", "users"]


def test_an_empty_one_is_not_wrong() -> None:
    with pytest.raises(Unwritten):
        fault_of(WRITTEN, lambda shape, context, users: None)


def test_the_answer_on_a_model() -> None:
    assert megabytes(SHAPES["Llama-3.1-70B"], 16384, 2) == pytest.approx(2 * 5368.7, rel=1e-4)
