"""llama.cpp's blocks: what gguf-py decodes is what was meant, for any weights; plain kinds are gguf-py's, byte for byte."""

from __future__ import annotations

from itertools import pairwise

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qlab.formats.gguf.block_bytes import to_bytes
from qlab.methods.kquants import blocks as kquants
from qlab.methods.kquants.blocks import encode, single_scale
from qlab.methods.kquants.kinds import KINDS
from qlab.support.errors import UserError

SEARCHED = sorted(kind for kind in KINDS if kind.endswith("_K"))
PLAIN = ["Q4_0", "Q5_0", "Q5_1", "Q8_0"]


def random_weight(rows: int, columns: int, seed: int, size: float = 0.02) -> Tensor:
    """Normal weights with some heavy ones, zeros, a constant run and values as FP16 checkpoints hold them."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * size
    weight[torch.rand(rows, columns, generator=generator) < 0.01] *= 8
    weight[0, :40] = 0
    weight[-1, -24:] = size
    return weight.half().float()


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    rows=st.integers(1, 5),
    blocks=st.integers(1, 3),
    seed=st.integers(0, 99),
    size=st.sampled_from([1e-30, 1e-6, 0.02, 3.0, 1000.0]),
    weighted=st.booleans(),
)
def test_bytes_decode_to_what_was_meant(kind: str, rows: int, blocks: int, seed: int, size: float, weighted: bool) -> None:
    columns = KINDS[kind].block * blocks
    weight = random_weight(rows, columns, seed, size)
    importance = torch.rand(columns, generator=torch.Generator().manual_seed(seed)) if weighted else None
    quantized = encode(weight, kind, importance)
    data = to_bytes(quantized)
    decoded = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(decoded, quantized.dequantize().numpy())
    assert np.isfinite(decoded).all()
    assert data.nbytes * 8 / weight.numel() == quantized.bits_per_weight


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(PLAIN),
    rows=st.integers(1, 4),
    blocks=st.integers(1, 5),
    seed=st.integers(0, 999),
    size=st.sampled_from([1e-4, 0.02, 1.0, 1000.0]),
)
def test_plain_blocks_are_ggufs_own(kind: str, rows: int, blocks: int, seed: int, size: float) -> None:
    weight = random_weight(rows, 32 * blocks, seed, size)
    weight[0, 3], weight[0, 17] = 9 * size, -9 * size  # equal extremes: the first decides the sign
    expected = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(to_bytes(encode(weight, kind)), expected)


# The root of the mean squared error over that of the weights, and with importance the weighted one, that llama.cpp's own
# quantizer (ggml_quantize_chunk of llama-cpp-python 0.3.36) leaves on `reference_weight`.
LLAMA_CPP = {
    "Q2_K": (0.30927, 0.20268),
    "Q3_K": (0.15987, 0.12683),
    "Q4_K": (0.07516, 0.05885),
    "Q5_K": (0.03810, 0.03085),
    "Q6_K": (0.01913, 0.01570),
    "Q4_0": (0.09363, 0.07682),
    "Q5_0": (0.04648, 0.03860),
    "Q5_1": (0.03966, 0.02778),
    "IQ4_NL": (0.08023, 0.06640),  # these two by xllamacpp 2026.10
    "IQ4_XS": (0.08090, 0.06749),
}


def reference_weight() -> tuple[Tensor, Tensor]:
    """A weight with unequal channels and some outliers, and an importance to match: the same on every machine."""
    random = np.random.RandomState(0)
    weight = random.standard_normal((64, 1024)) * np.exp(0.2 * random.standard_normal(1024))
    weight += (random.random_sample(weight.shape) < 0.001) * random.standard_normal(weight.shape) * 5
    importance = np.exp(1.5 * random.standard_normal(1024))
    return torch.from_numpy((0.02 * weight).astype(np.float16)).float(), torch.from_numpy(importance).float()


def relative_error(kind: str, weight: Tensor, importance: Tensor | None) -> float:
    counts = torch.ones(weight.shape[1]) if importance is None else importance
    error = (encode(weight, kind, importance).dequantize() - weight).square() * counts
    return float((error.sum() / (weight.square() * counts).sum()).sqrt())


@pytest.mark.parametrize("kind", sorted(LLAMA_CPP))
def test_the_error_is_no_larger_than_llama_cpps(kind: str) -> None:
    weight, importance = reference_weight()
    plain, weighted = LLAMA_CPP[kind]
    assert relative_error(kind, weight, None) <= 1.01 * plain
    assert relative_error(kind, weight, importance) <= 1.01 * weighted


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"Q8_0"}))
def test_importance_lowers_the_error_that_it_weighs(kind: str) -> None:
    weight, importance = reference_weight()
    aware = (encode(weight, kind, importance).dequantize() - weight).square().mean(0)
    blind = (encode(weight, kind).dequantize() - weight).square().mean(0)
    assert float(aware @ importance) < 0.99 * float(blind @ importance)
    same = encode(weight, kind, importance / 2**30)  # only its proportions count
    assert torch.equal(same.dequantize(), encode(weight, kind, importance).dequantize())


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("value", [0.0, 0.5, -0.5])
def test_constant_blocks(kind: str, value: float) -> None:
    weight = torch.full((2, 256), value)
    for importance in (None, torch.ones(256), torch.zeros(256)):
        assert torch.allclose(encode(weight, kind, importance).dequantize(), weight, rtol=2e-2)


def test_more_bits_err_less_and_eight_scales_beat_one() -> None:
    weight, _ = reference_weight()
    errors = [relative_error(kind, weight, None) for kind in ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K")]
    assert all(2.5 * fewer > more > 1.7 * fewer for fewer, more in pairwise(errors[1:]))
    assert errors[0] < errors[1]
    assert float((single_scale(weight) - weight).norm() / weight.norm()) > 1.2 * errors[3]


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q4_0", "Q8_0"])
def test_chunks_leave_no_trace(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, importance = reference_weight()
    whole = encode(weight, kind, importance)
    monkeypatch.setattr(kquants, "CHUNK", 24 * 1024)
    parts = encode(weight.half(), kind, importance)  # the last chunk holds fewer rows; FP16 comes out as its float32
    assert torch.equal(whole.codes, parts.codes)
    assert torch.equal(whole.dequantize(), parts.dequantize())


def test_results_are_ordinary_tensors() -> None:
    quantized = encode(torch.randn(2, 256), "Q4_K")
    assert not quantized.codes.is_inference()
    torch.nn.Parameter(quantized.dequantize()).sum().backward()


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "NaN or infinite weights"), (np.inf, "NaN or infinite weights"), (-np.inf, "NaN"), (1e6, "as large as 1e+06")],
)
def test_what_no_scale_can_express_is_refused(kind: str, value: float, message: str) -> None:
    weight = torch.zeros(2, 256)
    weight[1, 7] = value
    with pytest.raises(UserError, match=message.replace("+", r"\+")):
        encode(weight, kind)


def test_wrong_shapes_kinds_and_importances_are_refused() -> None:
    weight = torch.zeros(2, 256)
    for wrong, kind, message in (
        (torch.zeros(2, 300), "Q4_K", "multiple of 256 weights, not 300"),
        (torch.zeros(2, 33), "Q8_0", "multiple of 32 weights, not 33"),
        (torch.zeros(256), "Q4_K", "matrices"),
        (weight, "Q7_K", "no encoder for 'Q7_K'"),
    ):
        with pytest.raises(UserError, match=message):
            encode(wrong, kind)
    for importance, message in ((torch.ones(255), "each of the 256"), (-torch.ones(256), "negative"), (torch.ones(256) / 0, "infinite")):
        with pytest.raises(UserError, match=message):
            encode(weight, "Q4_K", importance)


@pytest.mark.parametrize("size", [1e-37, 1e-38, 1e-41])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_weights_next_to_nothing_leave_finite_scales(kind: str, weighted: bool, size: float) -> None:
    weight = torch.zeros(2, 256)
    weight[0, 3], weight[0, 9], weight[1, 40:90] = size, -size / 2, size
    found = encode(weight, kind, torch.ones(256) if weighted else None)
    assert found.d.isfinite().all()
    assert found.dmin.isfinite().all()
    assert found.dequantize().abs().max() < 1e-4
