"""Codes of every width in words, against what the compressed-tensors library 0.20 makes of them (compressed_words.py recorded it)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qlab.formats.compressed_tensors.reading import unpacked
from qlab.formats.compressed_tensors.writing import pack
from qlab.formats.packing import WIDTHS
from qlab.methods.grid import GroupedIntegers

RECORDED = json.loads((Path(__file__).parent / "compressed_words.json").read_text())
ROWS, COLUMNS = 32, 64


def codes(bits: int) -> torch.Tensor:
    """As compressed_words.py makes them up."""
    row, column = torch.arange(ROWS)[:, None], torch.arange(COLUMNS)[None]
    return (column * column * 7 + row * 13 + column * 3) % 2**bits


@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_lie_where_the_library_puts_them(bits: int) -> None:
    made = codes(bits)
    assert {int(made.min()), int(made.max())} == {0, 2**bits - 1}
    layer = GroupedIntegers(made.to(torch.uint8), torch.ones(ROWS, COLUMNS), made.to(torch.int16), bits)
    stored = pack(layer, symmetric=False)
    recorded = RECORDED["words"][str(bits)]
    assert stored["weight_packed"][:2].tolist() == recorded["weight_packed"]
    assert stored["weight_zero_point"][:, :2].tolist() == recorded["weight_zero_point"]


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_librarys_words_are_read_back(bits: int) -> None:
    recorded, signed = RECORDED["words"][str(bits)], codes(bits) - 2 ** (bits - 1)
    assert torch.equal(unpacked(torch.tensor(recorded["weight_packed"], dtype=torch.int32), bits, COLUMNS).long(), signed[:2])
    zeros = torch.tensor(recorded["weight_zero_point"], dtype=torch.int32)
    assert torch.equal(unpacked(zeros.T.contiguous(), bits, ROWS).T.long(), signed[:, :2])
