"""Speed and memory, in the runtimes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qlab.artifact import make_artifact
from qlab.evaluate.memory import disk_bytes
from qlab.evaluate.runtime import measure_runtime
from qlab.evaluate.speed import rate
from qlab.model import Source
from qlab.peers.recipes import BitsAndBytes
from qlab.process import run_isolated
from qlab.recipes import GGUF, Recipe


def test_rate_leaves_out_the_warm_up() -> None:
    calls = []
    mean, spread = rate(lambda: calls.append(1), 10, 3)
    assert len(calls) == 4
    assert mean > 0
    assert spread >= 0


@pytest.mark.parametrize(
    ("recipe", "runtime"), [(None, "transformers"), (GGUF("q8_0"), "llama.cpp"), (BitsAndBytes(), "transformers + bitsandbytes")]
)
def test_every_runtime_reports(recipe: Recipe | None, runtime: str, tiny: Source, calibration: torch.Tensor, tmp_path: Path) -> None:
    folder = make_artifact(recipe, tiny, calibration, str(tmp_path)).path if recipe else tiny.path
    figures = run_isolated(measure_runtime, folder, 16, 4, 1).value
    assert figures.speed.runtime == runtime
    assert figures.speed.prompt > 0
    assert figures.speed.generation > 0
    assert 0.5 * disk_bytes(folder) < figures.held_bytes < 500e6
