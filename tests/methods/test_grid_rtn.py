"""Integer grids and round-to-nearest."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.methods.grid import fit_grid, grouped
from qlab.methods.rtn import rtn
from qlab.support.errors import UserError


def weights(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 9), groups=st.integers(1, 5), size=st.sampled_from([32, 64, 128]),
    bits=st.integers(2, 8), symmetric=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_weight_is_within_half_a_step(rows: int, groups: int, size: int, bits: int, symmetric: bool, seed: int) -> None:
    weight = weights(rows, groups * size, seed)
    quantized = rtn(weight, bits, size, symmetric)
    step = quantized.scales.repeat_interleave(size, dim=1)
    assert quantized.codes.max() <= 2**bits - 1
    # Half a step; at the grid's ends up to a whole one, where the zero point was rounded or the range is lopsided.
    assert ((quantized.dequantize() - weight).abs() <= 1.01 * step + 1e-6).all()
    inside = (quantized.codes > 0) & (quantized.codes < 2**bits - 1)
    assert ((quantized.dequantize() - weight).abs() <= 0.501 * step + 1e-6)[inside].all()


def test_more_bits_are_nearer() -> None:
    weight = weights(16, 256, 0)
    errors = [float((rtn(weight, bits, 128).dequantize() - weight).square().sum()) for bits in (8, 4, 3, 2)]
    assert errors == sorted(errors)


def test_zero_stays_zero() -> None:
    weight = weights(4, 128, 0)
    weight[1] = 0
    weight[2, 5] = 0
    for symmetric in (False, True):
        back = rtn(weight, 4, 32, symmetric).dequantize()
        assert (back[1] == 0).all()
        assert back[2, 5] == 0


def test_bits_per_weight_counts_scales_and_zeros() -> None:
    assert rtn(weights(8, 256, 0), 4, 128).bits_per_weight == pytest.approx(4 + 20 / 128)


def test_a_group_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match=r"groups of 100.*divisor of 256"):
        grouped(weights(2, 256, 0), 100)
    assert grouped(weights(2, 100, 0), -1).shape == (2, 1, 100)


def test_scales_are_what_fp16_holds() -> None:
    scale, _ = fit_grid(weights(3, 64, 0)[:, None], 4, symmetric=False)
    assert torch.equal(scale, scale.half().float())
