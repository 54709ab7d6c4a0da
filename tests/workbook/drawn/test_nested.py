"""The bytes of double quantization, against the bits that the format takes."""

from __future__ import annotations

import pytest
import torch

from qlab.methods.nf4 import nf4, stored_bits
from qlab.workbook.drawn.nested import nested_bytes


def test_bytes_are_those_of_the_stored_tensors() -> None:
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))  # 512 blocks, two superblocks
    found = nested_bytes(weight)
    assert found.single == {"codes": 16384, "absmax": 2048}
    assert found.double == {"codes": 16384, "absmax": 512, "scales of absmax": 12}
    assert found.bits(found.single) == stored_bits(False) == 4.5
    assert found.bits(found.double) == pytest.approx(stored_bits(True), abs=1e-3)
    assert torch.equal(found.stored, nf4(weight, double=True).absmax)
    assert found.moved == pytest.approx(float(((found.stored - found.exact) / found.exact).abs().mean()))
    assert 0 < found.moved < 0.05
