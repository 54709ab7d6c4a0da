"""A walk that several devices share: the bytes of one, whoever does which block, and after an interruption too."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from qlab.artifacts.artifact import Artifact, quantize_model
from qlab.artifacts.devices import walk_on
from qlab.models.opening import OpenedModel, found_devices
from qlab.recipes import parse
from qlab.support.errors import UserError
from qlab.walk.state.share import ALONE, Share

RECIPES = ["gptq-w4g64", "rtn-w4g64", "q4_k_m", "tuned-w4g64-steps4"]


def files(artifact: Artifact) -> dict[str, str]:
    kept = [path for path in artifact.path.iterdir() if not path.name.startswith("qlab-cost")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


@pytest.mark.parametrize("count", [2, 3])
def test_the_bytes_of_one_device(count: int, tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    recipes = [parse(name) for name in RECIPES]
    alone = quantize_model(tiny, recipes, calibration, tmp_path / "alone")
    shared = quantize_model(tiny, recipes, calibration, tmp_path / "shared", beside=["cpu"] * (count - 1))
    assert [files(artifact) for artifact in shared] == [files(artifact) for artifact in alone]
    assert len(shared) == len(RECIPES)


def test_every_block_of_every_recipe_is_one_devices(tiny: OpenedModel) -> None:
    methods = [parse(name) for name in RECIPES]
    for count in (1, 2, 3, 5):
        for index in range(7):
            done = [method.name for rank in range(count) for method in Share(rank, count).of_block(methods, index)]
            assert sorted(done) == sorted(RECIPES)
    owners = {rank for rank in range(3) for index in range(7) if methods[3] in Share(rank, 3).of_block(methods, index)}
    assert len(owners) == 1, "a sequential recipe stays on one device"


def test_a_device_goes_no_further_than_it_must() -> None:
    methods = [parse("gptq-w4g64")]
    assert Share(0, 2).reads_original(methods, 2, 4)
    assert not Share(0, 2).reads_original(methods, 3, 4)
    assert not ALONE.reads_original([parse("nf4")], 0, 4)
    assert not Share(3, 4).works(methods, 3)


def test_devices_are_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found_devices("cpu,cpu") == ["cpu", "cpu"]
    with pytest.raises(UserError, match="no device"):
        found_devices("cpu,tpu9")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="finds no GPU"):
        found_devices("all")
    monkeypatch.setattr("qlab.models.opening.found_device", str)
    with pytest.raises(UserError, match="one kind"):
        found_devices("cpu,cuda:1")


def test_what_one_device_raises_is_said(tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    no_tokens = calibration.float()
    with pytest.raises(RuntimeError, match="the walk failed: IndexError"):
        walk_on(["cpu", "cpu"], tiny, [parse("gptq-w4g64")], no_tokens, tmp_path)
