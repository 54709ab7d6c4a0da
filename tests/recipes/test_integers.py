"""Recipes of grouped integers: their names, and what tuning is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qlab import EMBEDDED
from qlab.methods import tuned
from qlab.models.opening import locate
from qlab.recipes import integers, parse


@pytest.mark.parametrize(
    "name",
    [
        "rtn-w3g32-sym-search",
        "awq-w4grow-cover",
        "gptq-w8g128-asym-actorder-sequential-ct",
        "awq-gptq-w4g64-static",
        "tuned-w4g128-steps320",
        "tuned-w4g128-batch8",
        "tuned-w2g64-sym-steps320-batch8-ct",
    ],
)
def test_a_name_is_read_and_said_again(name: str) -> None:
    assert parse(name).name == name


def test_tuning_takes_so_many_windows_a_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []

    def watched(run: Any, quantized: Any, rest: Any, batches: Any, steps: int, metric: Any) -> None:
        inputs, wanted = next(iter(batches))
        seen.append((len(inputs), len(wanted), steps))
        tuned.tune(run, quantized, rest, batches, steps, metric)

    monkeypatch.setattr(integers, "tune", watched)
    windows = torch.arange(6 * 8).view(6, 8)
    source = locate(str(EMBEDDED))
    for name in ("tuned-w4g64-steps1", "tuned-w4g64-steps2-batch5"):
        (tmp_path / name).mkdir()
        parse(name).quantize(source, windows, tmp_path / name, "cpu")
    blocks = source.layout.count
    assert seen == [(4, 4, 1)] * blocks + [(5, 5, 2)] * blocks
