"""How a model is held follows from sizes alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from qlab.artifacts.artifact import quantize_model
from qlab.models.loading import load
from qlab.models.opening import OpenedModel, locate
from qlab.models.resting import choosing
from qlab.models.resting.choosing import COPIES, IN_MEMORY, ON_DEVICE, WHOLE, Sizes, held, held_on, resting_bytes, sizes_of
from qlab.recipes import parse
from tests.bench.made_up import make_checkpoint

LLAMA_8B = Sizes(single=32.1e9, stored=16.1e9, work=5e9)


@pytest.mark.parametrize(
    ("room", "on_gpu", "expected"),
    [
        (COPIES * 32.1e9, True, WHOLE), (COPIES * 32.1e9 - 1, True, ON_DEVICE), (24e9, True, ON_DEVICE), (21.1e9, True, ON_DEVICE),
        (21e9, True, IN_MEMORY), (8e9, True, IN_MEMORY), (8e9, False, ON_DEVICE), (200e9, False, WHOLE),
    ],
)  # fmt: skip
def test_an_8b_model_rests_where_there_is_no_room_for_copies_of_it(room: float, on_gpu: bool, expected: str) -> None:
    assert held(LLAMA_8B, room, on_gpu) == expected


def test_what_rests_is_predicted_to_the_byte(tiny: OpenedModel, tmp_path: Path) -> None:
    single = locate(str(make_checkpoint(tmp_path / "single", 2, 64, 128, 4, 2, kind="qwen2", dtype=torch.float32)))
    for source in (tiny, single):
        model = load(source, apart=True, holding=ON_DEVICE)
        assert resting_bytes(source) == sum(parameter.nbytes for parameter in model.parameters())
    assert sizes_of(single).stored == sizes_of(single).single
    assert sizes_of(tiny).stored < 0.51 * sizes_of(tiny).single


def test_what_was_quantized_rests_as_it_is_decoded(tiny: OpenedModel, calibration: Tensor, tmp_path: Path) -> None:
    (made,) = quantize_model(tiny, [parse("rtn-w4g64-ct")], calibration, tmp_path)
    model = load(made.source, apart=True, holding=ON_DEVICE)
    assert resting_bytes(made.source) == sum(parameter.nbytes for parameter in model.parameters())


def test_what_is_free_decides(tiny: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert held_on(tiny, "cpu") == WHOLE
    monkeypatch.setattr(choosing, "free_on", lambda device: 1e6)
    assert held_on(tiny, "cpu") == ON_DEVICE
