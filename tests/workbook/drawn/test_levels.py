"""How evenly levels are used."""

from __future__ import annotations

import pytest
import torch

from qlab.methods.nf4 import nf4, normal_levels, uniform_levels
from qlab.workbook.drawn.levels import block_shares, fullest


def test_shares_are_of_each_blocks_largest() -> None:
    weight = torch.tensor([[1.0, -4.0, *[0.5] * 62], [*[2.0] * 63, -0.5], [0.0] * 64])
    shares = block_shares(weight)
    assert shares[:3].tolist() == [0.25, -1, 0.125]
    assert shares[127] == -0.25
    assert not shares[128:].any()


def test_the_fullest_level_is_that_of_the_codes_that_nf4_gives() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    shares = block_shares(weight)
    assert fullest(shares, normal_levels()) == pytest.approx(float(nf4(weight).codes.long().bincount().max()) / 64 / 256, abs=1e-4)
    assert fullest(shares, uniform_levels()) == pytest.approx(
        float(nf4(weight, uniform_levels()).codes.long().bincount().max()) / 64 / 256, abs=1e-4
    )
    assert 1 / 16 < fullest(shares, normal_levels()) < fullest(shares, uniform_levels())
