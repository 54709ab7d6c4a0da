"""A walk that was killed when some of its artifacts were finished goes on with the others, and leaves nothing of itself."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from qlab.artifacts import artifact
from qlab.artifacts.artifact import quantize_model
from qlab.artifacts.going_on import LOCK
from qlab.models.opening import OpenedModel
from qlab.recipes import parse
from qlab.support.disk.lock import locked
from qlab.support.errors import UserError
from qlab.walk.walk import Walk

RECIPES = [parse("rtn-w4g64"), parse("nf4")]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def never(*_: Any) -> None:
    raise AssertionError("a block was quantized again")


def killed_at(number: int, do: Any) -> Any:
    """`do`, but what kills the process comes in place of its n-th call."""
    calls = iter(range(number))

    def call(*arguments: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return do(*arguments)

    return call


def test_between_two_artifacts_it_goes_on_with_the_second(
    tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize_model(tiny, RECIPES, calibration, tmp_path / "whole")
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(artifact, "finish", killed_at(1, artifact.finish))
        with pytest.raises(KeyboardInterrupt):
            quantize_model(tiny, RECIPES, calibration, out)
    (state,) = out.glob(".walk-*")
    assert names(out) == [state.name, "rtn-w4g64"]
    monkeypatch.setattr(Walk, "_quantize", never)
    quantize_model(tiny, RECIPES, calibration, out)
    assert names(out) == ["nf4", "rtn-w4g64"]
    for made in ("nf4", "rtn-w4g64"):
        (one,), (other,) = (list((folder / made).glob("*.safetensors")) for folder in (out, tmp_path / "whole"))
        assert one.read_bytes() == other.read_bytes()


def test_when_all_were_finished_the_same_call_clears_away(
    tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(artifact, "discard", killed_at(0, None))
        with pytest.raises(KeyboardInterrupt):
            quantize_model(tiny, RECIPES, calibration, tmp_path / "out")
    assert len(list((tmp_path / "out").glob(".walk-*"))) == 1
    foreign = tmp_path / "out" / ".walk-0123456789ab"
    (foreign / "nf4").mkdir(parents=True)
    (tmp_path / "out" / ".qlab-lock").touch()  # as a killed process leaves it
    quantize_model(tiny, RECIPES, calibration, tmp_path / "out")
    assert names(tmp_path / "out") == [foreign.name, "nf4", "rtn-w4g64"]


def test_lessons_that_walk_over_one_model_wait_for_each_other(tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path / LOCK, "the folder"):
            with pytest.raises(UserError, match="is being worked on"):
                quantize_model(tiny, RECIPES, calibration, tmp_path)
            waiting = pool.submit(quantize_model, tiny, RECIPES, calibration, tmp_path, wait=True)
            time.sleep(0.5)
            assert not waiting.done()
        assert [made.path.name for made in waiting.result()] == [recipe.name for recipe in RECIPES]
