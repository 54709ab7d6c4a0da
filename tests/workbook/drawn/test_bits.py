"""What bits stand for, held against torch's own formats; and the grid of INT4 against RTN."""

from __future__ import annotations

import math

import pytest
import torch

from qlab.methods.rtn import rtn
from qlab.workbook.drawn.bits import FLOATS, WHOLE, Stored, bits_of, chosen_weights, stored

ROW = 0.03 * torch.randn(256, generator=torch.Generator().manual_seed(2))
NUMBERS = [0.0, 1.0, -1.0, 0.1, -3.75, 448.0, 2.0**-9, 2.0**-6, 1e-5, 65504.0, *ROW[:20].tolist()]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("number", NUMBERS)
def test_the_bits_are_torchs_and_stand_for_what_torch_rounds_to(name: str, number: float) -> None:
    layout = FLOATS[name]
    expected = torch.tensor(number).to(layout.dtype).double()
    bits = bits_of(torch.tensor(number), layout)
    assert len(bits) == layout.width
    assert Stored(name, bits).value == pytest.approx(float(expected), rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", ["BF16", "FP16", "FP8 E4M3"])
def test_every_pattern_of_bits_stands_for_what_torch_says(name: str) -> None:
    layout = FLOATS[name]
    for whole in range(0, 2**layout.width, 1 if layout.width == 8 else 37):
        signed = whole if layout.width == 8 or whole < 2 ** (layout.width - 1) else whole - 2**layout.width
        expected = float(torch.tensor([signed], dtype=WHOLE[layout.width]).view(layout.dtype).double())
        found = Stored(name, f"{whole:0{layout.width}b}").value
        assert found == expected or (math.isnan(found) and math.isnan(expected)), (whole, found, expected)


def test_int4_is_rtn_on_the_weights_group_and_fp8_spans_the_row() -> None:
    place = 200
    found = {entry.format: entry for entry in stored(ROW, place, 128)}
    assert found["INT4"].value == pytest.approx(float(rtn(ROW[None], 4, 128).dequantize()[0, place]))
    largest = int(ROW.abs().argmax())
    assert {entry.format: entry for entry in stored(ROW, largest, 128)}["FP8 E4M3"].value == pytest.approx(float(ROW[largest]))
    assert abs(found["FP8 E4M3"].value / float(ROW[place]) - 1) < 2**-4
    assert found["FP32"].value == float(ROW[place])


def test_weights_are_chosen_by_size_and_are_none_of_zero() -> None:
    row = torch.tensor([0.5, 0.0, -2.0, 0.25, 1.0, 9.0])
    found = {name: float(row[place]) for name, place in chosen_weights(row, 5).items()}
    assert (found["largest"], found["smallest"]) == (-2.0, 0.25)
    assert [abs(weight) for weight in found.values()] == sorted((abs(weight) for weight in found.values()), reverse=True)


def test_a_pruned_group_has_weights_to_choose_too() -> None:
    assert set(chosen_weights(torch.zeros(16), 8).values()) == {0}
