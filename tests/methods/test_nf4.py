"""NF4 against bitsandbytes, level by level and block by block."""

from __future__ import annotations

import bitsandbytes.functional as library
import pytest
import torch

from qlab.errors import UserError
from qlab.methods.nf4 import nf4, normal_levels, stored_bits, uniform_levels


def test_levels_are_bitsandbytes() -> None:
    assert torch.allclose(normal_levels(), library.get_4bit_type("nf4", device="cpu"), atol=2e-7)


def test_weights_come_back_as_from_bitsandbytes() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * 0.02
    codes, state = library.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    ours = nf4(weight)
    assert torch.equal(ours.absmax, state.absmax)
    assert torch.allclose(ours.dequantize(), library.dequantize_4bit(codes, state), atol=1e-7)


def test_normal_levels_beat_uniform_ones_on_normal_weights() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    normal, uniform = ((nf4(weight, levels).dequantize() - weight).norm() for levels in (normal_levels(), uniform_levels()))
    assert normal < 0.96 * uniform


def test_a_block_of_zeros_stays_zero() -> None:
    assert (nf4(torch.zeros(2, 64)).dequantize() == 0).all()


def test_stored_bits() -> None:
    assert stored_bits(False) == 4.5
    assert stored_bits(True) == pytest.approx(4.127, abs=5e-4)


def test_odd_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="multiple of 64"):
        nf4(torch.zeros(3, 30))
