"""What a model predicts, computed a block at a time, is what the whole model predicts: to the bit, and in every arithmetic."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qlab.artifacts.artifact import quantize_model
from qlab.evaluate.arithmetic import floor_of
from qlab.evaluate.quality import measure_each
from qlab.models.loading import load
from qlab.models.opening import OpenedModel, locate
from qlab.recipes import parse
from qlab.serve.rounding import half_outputs
from qlab.walk import by_block
from qlab.walk.by_block import BlockByBlock, held_whole, predictor


@torch.inference_mode()
def whole(source: OpenedModel, windows: Tensor, bfloat16: bool = False) -> list[Tensor]:
    model = load(source)
    with half_outputs(torch.bfloat16)(model) if bfloat16 else nullcontext():
        return [model(input_ids=window, use_cache=False).logits[0, :-1].float() for window in windows.split(1)]


@pytest.mark.parametrize("name", ["tiny", "embedded"])
def test_the_bits_are_the_whole_model_s(name: str, tiny: OpenedModel, calibration: Tensor, tmp_path: Path) -> None:
    source, windows = tiny if name == "tiny" else locate(name), calibration[:3]
    found = BlockByBlock(source, windows, place=tmp_path)
    assert len(found) == 3
    for index, expected in enumerate(whole(source, windows)):
        assert torch.equal(found[index], expected)
    assert len(list(tmp_path.rglob("*.bin"))) == 1
    del found
    assert not list(tmp_path.iterdir()), "the file goes with the object"


def test_windows_of_different_lengths_are_each_computed_as_alone(calibration: Tensor, tmp_path: Path) -> None:
    source, lengths = locate("embedded"), (7, 20, 7, 3, 20)
    windows = [calibration[index : index + 1, :length] for index, length in enumerate(lengths)]
    found = BlockByBlock(source, windows, place=tmp_path)
    model = load(source)
    for index, window in enumerate(windows):
        with torch.inference_mode():
            expected = model(input_ids=window, use_cache=False).logits[0, :-1].float()
        assert torch.equal(found[index], expected)
    assert len(found) == len(lengths)


def test_the_noise_floor_is_the_whole_model_s(tiny: OpenedModel, calibration: Tensor) -> None:
    windows = calibration[:2]
    floor = floor_of(tiny, BlockByBlock(tiny, windows), windows, "cpu")
    assert isinstance(floor, BlockByBlock)
    for index, expected in enumerate(whole(tiny, windows, bfloat16=True)):
        assert torch.equal(floor[index], expected)


def test_activations_are_rounded_as_the_checkpoint_asks(tiny: OpenedModel, calibration: Tensor, tmp_path: Path) -> None:
    (made,) = quantize_model(tiny, [parse("rtn-w8a8")], calibration[:2], tmp_path)
    for index, expected in enumerate(whole(made.source, calibration[:2])):
        assert torch.equal(BlockByBlock(made.source, calibration[:2])[index], expected)


def test_what_is_large_is_never_whole(tiny: OpenedModel, calibration: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_block, "LARGE", 4 * tiny.layout.weights)
    assert held_whole(tiny)
    assert not isinstance(predictor(tiny, calibration, "cpu")[0], BlockByBlock)
    monkeypatch.setattr(by_block, "LARGE", 4 * tiny.layout.weights - 1)
    assert (held_whole(tiny), held_whole(tiny, wanted=True)) == (False, True)
    assert not isinstance(predictor(tiny, calibration, "cpu", whole=True)[0], BlockByBlock)
    large, rest = predictor(tiny, calibration[:2], "cpu")
    assert isinstance(large, BlockByBlock)
    assert rest == []
    model = load(tiny)
    assert measure_each([large], calibration[:2], large) == measure_each([model], calibration[:2], model)
