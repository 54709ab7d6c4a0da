"""K-quants: what gguf-py decodes is what was meant, for any weights."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.errors import UserError
from qlab.formats.kquant_bytes import to_bytes
from qlab.methods.kquants import q4_k, q6_k, single_scale

KINDS = {"Q4_K": q4_k, "Q6_K": q6_k}


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    rows=st.integers(1, 5),
    blocks=st.integers(1, 3),
    seed=st.integers(0, 99),
    size=st.sampled_from([1e-6, 0.02, 3.0, 300.0]),
)
def test_bytes_decode_to_what_was_meant(kind: str, rows: int, blocks: int, seed: int, size: float) -> None:
    weight = torch.randn(rows, 256 * blocks, generator=torch.Generator().manual_seed(seed)) * size
    weight[0, :40] = 0
    quantized = KINDS[kind](weight)
    data = to_bytes(quantized)
    decoded = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(decoded, quantized.dequantize().numpy())
    assert data.nbytes * 8 / weight.numel() == quantized.bits_per_weight


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("value", [0.0, 0.5, -0.5])
def test_constant_blocks(kind: str, value: float) -> None:
    weight = torch.full((2, 256), value)
    assert torch.allclose(KINDS[kind](weight).dequantize(), weight, rtol=2e-2)


def test_six_bits_beat_four_and_eight_scales_beat_one() -> None:
    weight = torch.randn(32, 512, generator=torch.Generator().manual_seed(0))
    weight[:, ::64] *= 4
    errors = [
        float((back - weight).norm() / weight.norm())
        for back in (q6_k(weight).dequantize(), q4_k(weight).dequantize(), single_scale(weight))
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.3 * errors[1]


def test_rows_that_superblocks_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="multiple of 256"):
        q4_k(torch.zeros(2, 300))
