"""NF4 and FP4 against bitsandbytes, level by level and block by block."""

from __future__ import annotations

import bitsandbytes.functional as library
import pytest
import torch

from qlab.methods.nf4 import KINDS, dynamic_map, float_levels, nest, nf4, normal_levels, stored_bits, uniform_levels
from qlab.support.errors import UserError


def random_weight(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)


def test_levels_are_bitsandbytes() -> None:
    assert torch.equal(normal_levels(), library.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(float_levels(), library.get_4bit_type("fp4", device="cpu"))
    assert torch.equal(dynamic_map(), library.create_dynamic_map())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_come_back_as_from_bitsandbytes(kind: str, double: bool, dtype: torch.dtype) -> None:
    weight = random_weight(384, 256, dtype=dtype)
    codes, state = library.quantize_4bit(weight, quant_type=kind, blocksize=64, compress_statistics=double)
    ours = nf4(weight, kind=kind, double=double)
    if ours.nested is None:
        assert torch.equal(ours.absmax, state.absmax)
    else:
        assert torch.equal(ours.nested.codes, state.absmax)
        assert torch.equal(ours.nested.absmax, state.state2.absmax)
        assert torch.equal(ours.nested.offset, state.offset)
    assert ours.absmax.dtype == torch.float32
    assert torch.equal(ours.dequantize().to(dtype), library.dequantize_4bit(codes, state))


def test_scales_are_quantized_again_as_bitsandbytes_does() -> None:
    """Against blockwise quantization itself, over more values than a layer's scales give: near the boundaries, too."""
    values = torch.rand(256 * 2000, generator=torch.Generator().manual_seed(0)) ** 4
    values[: 256 * 500] = values[: 256 * 500].round(decimals=2)
    codes, state = library.quantize_blockwise(values - values.mean(), blocksize=256)
    ours = nest(values)
    assert torch.equal(ours.codes, codes)
    assert torch.equal(ours.absmax, state.absmax)
    assert torch.allclose(ours.dequantize(), values, atol=0.02)


def test_double_quantization_costs_little() -> None:
    weight = random_weight(256, 256)
    single, double = ((nf4(weight, double=double).dequantize() - weight).norm() for double in (False, True))
    assert single < double < 1.01 * single


def test_normal_levels_beat_uniform_ones_on_normal_weights() -> None:
    weight = random_weight(64, 256, dtype=torch.float32)
    normal, uniform = ((nf4(weight, levels).dequantize() - weight).norm() for levels in (normal_levels(), uniform_levels()))
    assert normal < 0.96 * uniform


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_of_zeros_stays_zero(kind: str) -> None:
    assert (nf4(torch.zeros(2, 64), kind=kind).dequantize() == 0).all()


def test_a_last_block_may_be_short() -> None:
    weight = random_weight(3, 30)
    tensor = nf4(weight)
    assert tensor.absmax.shape == (2,)
    assert tensor.dequantize().shape == weight.shape
    assert torch.equal(tensor.absmax, torch.stack([weight.flatten()[:64].abs().max(), weight.flatten()[64:].abs().max()]).float())


def test_stored_bits() -> None:
    assert stored_bits(False) == 4.5
    assert stored_bits(True) == pytest.approx(4.127, abs=5e-4)
    weight = random_weight(128, 128)
    assert nf4(weight).bits_per_weight == stored_bits(False)
    assert nf4(weight, double=True).bits_per_weight == stored_bits(True)


def test_what_cannot_be_quantized_is_refused() -> None:
    with pytest.raises(UserError, match="no 4-bit kind 'nf5'"):
        nf4(torch.zeros(2, 64), kind="nf5")
    with pytest.raises(UserError, match="expected a matrix"):
        nf4(torch.zeros(64))
