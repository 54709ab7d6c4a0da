"""Lesson 4's exercise: readers' ways to decode a superblock, what each is told, and gguf-py as the judge of the cases."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
import torch

from qlab.workbook.exercises.superblock import WRITTEN, error_of, superblock_of
from qlab.workbook.exercises.trial import Unwritten, fault_of


def by_numpy(block: Any, wrong: str = "") -> Any:
    raw = np.array(block)
    d, dmin = raw[:4].view(np.float16).astype(np.float64)
    packed, weights = raw[4:16].astype(int), []
    for i in range(8):
        if i < 4:
            scale, minimum = packed[i], packed[4 + i]
            if wrong != "unmasked":
                scale, minimum = scale % 64, minimum % 64
        else:
            scale, minimum = packed[4 + i] % 16, packed[4 + i] // 16
            if wrong == "turned":
                scale, minimum = minimum, scale
            if wrong != "topless":
                scale, minimum = scale + 16 * (packed[i - 4] // 64), minimum + 16 * (packed[i] // 64)
        run = raw[16 + 32 * (i // 2) : 48 + 32 * (i // 2)].astype(int)
        codes = run % 16 if i % 2 == 0 else run // 16
        if (wrong == "late" and i >= 4) or (wrong == "early" and i < 4):
            scale += 3
        m = {"added": -1, "none": 0}.get(wrong, 1) * dmin * minimum
        weights.append(d * scale * codes - m)
    return np.array(weights) if wrong == "rows" else np.concatenate(weights)


def test_a_right_one_passes_in_numpy() -> None:
    assert fault_of(WRITTEN, by_numpy) is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("added", "The minimum is added"),
        ("none", "The minima are missing"),
        ("unmasked", "Keep the low six"),
        ("topless", "lack their two highest bits"),
        ("turned", "scale and minimum are exchanged"),
        ("rows", "shape [8, 32] instead of [256]"),
        ("late", "Sub-blocks 0 to 3 are right; of 4 to 7"),
        ("early", "Sub-blocks 4 to 7 are right; of 0 to 3"),
    ],
)
def test_a_wrong_one_is_told_what_is_wrong(wrong: str, said: str) -> None:
    fault = fault_of(WRITTEN, lambda block: by_numpy(block, wrong))
    assert fault is not None
    assert said in fault.said


def test_an_empty_one_is_not_wrong() -> None:
    with pytest.raises(Unwritten):
        fault_of(WRITTEN, lambda block: None)


def test_gguf_decodes_the_cases_alike() -> None:
    for case in WRITTEN.cases():
        theirs = gguf.quants.dequantize(case["block"].numpy()[None], gguf.GGMLQuantizationType.Q4_K)[0]
        np.testing.assert_allclose(WRITTEN.expected(**case).numpy(), theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(4, 512), (3, 100), (2, 16)])
def test_a_superblock_of_any_matrix(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    weights, block = superblock_of(weight)
    assert block.shape == (144,)
    assert torch.equal(weights[: weight.numel()], weight.flatten()[:256])
    decoded = WRITTEN.solution(block)
    error = float((decoded - weights).square().sum() / weights.square().sum())
    assert error < 0.02
    assert error_of(weights) == pytest.approx(100 * error, rel=1e-4)
