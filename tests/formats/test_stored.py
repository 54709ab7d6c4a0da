"""Stored weights decode to what the library that owns their format makes of them; what is no weight is refused."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from qlab.formats.packing import pack_words
from qlab.formats.stored import describe, plain_tensors
from qlab.support.errors import UserError

DTYPES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.uint8: "U8", torch.int8: "I8", torch.int32: "I32", torch.int64: "I64", torch.bool: "BOOL",
}  # fmt: skip


class InMemory:
    """Stored tensors without files."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.dtypes = {name: DTYPES[tensor.dtype] for name, tensor in tensors.items()}

    def read(self, name: str, first: int = 0, count: int | None = None) -> Tensor:
        return self.tensors[name].clone()


def decoded(quantization: dict[str, Any] | None, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    stored = InMemory(tensors)
    found = {}
    for name, entry in plain_tensors(quantization, stored).items():
        entry = pickle.loads(pickle.dumps(entry))
        found[name] = entry.decode({role: stored.read(part) for role, part in entry.parts.items()})
        assert tuple(found[name].shape) == entry.shape
    return found


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bytes_(*shape: int, low: int = 0, high: int = 256, seed: int = 0) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(("shape", "scale"), [((256, 384), (2, 3)), ((256, 384), (256, 1)), ((256, 384), ()), ((3, 256, 128), (3, 2, 1))])
@pytest.mark.parametrize("suffix", ["_scale_inv", "_scale"])
def test_fp8_is_what_transformers_makes_of_it(shape: tuple[int, ...], scale: tuple[int, ...], suffix: str) -> None:
    weight, scales = numbers(*shape).to(torch.float8_e4m3fn), numbers(*scale, seed=1).abs()
    found = decoded(FP8, {"a.weight": weight, f"a.weight{suffix}": scales, "a.input_scale": torch.ones(()), "n.weight": torch.ones(4)})
    expected = Fp8Dequantize(None)._dequantize_one(weight, scales if scale else scales.view(1, 1), torch.float32)
    assert set(found) == {"a.weight", "n.weight"}
    assert torch.equal(found["a.weight"], expected)


def test_fp8_blocks_may_end_within_a_matrix() -> None:
    """As of DeepSeek's kv_a_proj_with_mqa, 576 rows in blocks of 128."""
    weight, scales = numbers(200, 300).to(torch.float8_e4m3fn), numbers(2, 3, seed=1).abs()
    found = decoded(FP8, {"a.weight": weight, "a.weight_scale_inv": scales})["a.weight"]
    for row, column in ((0, 0), (127, 127), (128, 128), (199, 299), (5, 256)):
        assert found[row, column] == weight[row, column].float() * scales[row // 128, column // 128]
    with pytest.raises(UserError, match=r"200 x 300 weights and 3 x 7 scales"):
        decoded(FP8, {"a.weight": weight, "a.weight_scale_inv": numbers(3, 7)})
    with pytest.raises(UserError, match=r"a\.weight is FP8 and its scale, a\.weight_scale_inv or .*, is missing"):
        decoded(FP8, {"a.weight": weight})


def test_fp8_scales_as_exponents_and_a_scale_a_row() -> None:
    weight = numbers(256, 128).to(torch.float8_e4m3fn)
    exponents = bytes_(2, 1, low=120, high=134)
    expected = Fp8Dequantize(None)._dequantize_one(weight, exponents, torch.float32)
    assert torch.equal(decoded(FP8, {"a.weight": weight, "a.weight_scale_inv": exponents})["a.weight"], expected)
    rows = numbers(256, seed=1)
    assert torch.equal(decoded(FP8, {"a.weight": weight, "a.weight_scale": rows})["a.weight"], weight.float() * rows[:, None])


def test_mxfp4_is_what_transformers_makes_of_it() -> None:
    blocks, scales = bytes_(3, 64, 2, 16), bytes_(3, 64, 2, low=90, high=160, seed=1)
    scales[0, 0] = torch.tensor([0, 254], dtype=torch.uint8)  # the smallest and the largest exponent
    name = "model.layers.0.mlp.experts.gate_up_proj"
    found = decoded({"quant_method": "mxfp4"}, {f"{name}_blocks": blocks, f"{name}_scales": scales, f"{name}_bias": torch.ones(3, 64)})
    assert set(found) == {name, f"{name}_bias"}
    assert torch.equal(found[name], convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))


def scheme(bits: int, kind: str = "int", **more: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": kind, "symmetric": True} | more
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_integers_decode_in_the_dtype_of_their_scales(bits: int, dtype: torch.dtype, symmetric: bool) -> None:
    rows, columns, group = 32, 96, 32
    codes = bytes_(rows, columns, high=2**bits).int()
    zeros = bytes_(rows, columns // group, high=2**bits, seed=1).int()
    scales = numbers(rows, columns // group, seed=2).to(dtype)
    tensors = {"a.weight_packed": pack_words(codes, bits), "a.weight_scale": scales, "a.weight_shape": torch.tensor([rows, columns])}
    middle = 2 ** (bits - 1)
    weights = (codes - middle).to(dtype)
    if not symmetric:
        tensors["a.weight_zero_point"] = pack_words(zeros.T, bits).T.contiguous()
        weights = weights - (zeros - middle).to(dtype).repeat_interleave(group, 1)
    expected = (weights * scales.repeat_interleave(group, 1)).float()  # rounded in that dtype, as the library does it
    entry = scheme(bits, strategy="group", group_size=group, symmetric=symmetric)
    assert torch.equal(decoded(entry, tensors)["a.weight"], expected)


def test_scattered_groups_follow_g_idx() -> None:
    codes, scales = bytes_(8, 64, high=16).int(), numbers(8, 2, seed=1)
    g_idx = torch.randperm(64, generator=torch.Generator().manual_seed(3)) // 32
    tensors = {"a.weight_packed": pack_words(codes, 4), "a.weight_scale": scales, "a.weight_shape": torch.tensor([8, 64])}
    found = decoded(scheme(4, strategy="group", group_size=32), tensors | {"a.weight_g_idx": g_idx.int()})["a.weight"]
    assert torch.equal(found, (codes - 8).float() * scales[:, g_idx])


def test_int8_and_fp8_of_compressed_tensors() -> None:
    codes, scales = bytes_(8, 64).view(torch.int8), numbers(8, 1, seed=1).bfloat16()
    found = decoded(scheme(8, strategy="channel") | {"format": "int-quantized"}, {"a.weight": codes, "a.weight_scale": scales})
    assert torch.equal(found["a.weight"], (codes.bfloat16() * scales).float())
    codes = numbers(8, 64).to(torch.float8_e4m3fn)
    tensors = {"a.weight": codes, "a.weight_scale": scales, "lm_head.weight": torch.ones(4, 4), "a.input_scale": torch.ones(1)}
    found = decoded(scheme(8, "float", strategy="channel") | {"format": "float-quantized"}, tensors)
    assert torch.equal(found["a.weight"], (codes.bfloat16() * scales).float())
    assert set(found) == {"a.weight", "lm_head.weight"}


def test_a_layer_follows_the_group_that_names_it() -> None:
    quantization = scheme(8, strategy="group", group_size=32)
    narrow = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    quantization["config_groups"]["group_1"] = {"targets": ["re:.*experts.*"], "weights": narrow}
    codes, scales = bytes_(4, 64, high=16).int(), numbers(4, 2)
    tensors = {"m.experts.0.weight_packed": pack_words(codes, 4), "m.experts.0.weight_scale": scales}
    tensors |= {"m.q.weight_packed": pack_words(codes, 8), "m.q.weight_scale": scales}
    found = decoded(quantization, tensors)
    assert torch.equal(found["m.experts.0.weight"], (codes - 8) * scales.repeat_interleave(32, 1))
    assert torch.equal(found["m.q.weight"], (codes - 128) * scales.repeat_interleave(32, 1))
    assert describe(quantization) == "compressed-tensors, 8-bit int in groups of 32, 4-bit int in groups of 32"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"quant_method": "awq", "bits": 3}, "AWQ gemm of 3 bits; qlab reads AWQ gemm of 4 bits"),
        ({"quant_method": "gptq", "bits": 5}, "GPTQ gptq of 5 bits; qlab reads gptq, gptq_v2 of 2, 3, 4, 8 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "AWQ gemv"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "GPTQ marlin"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, r"8-bit integers of bitsandbytes .* scales named SCB"),
        ({"quant_method": "quip"}, "quantized as quip"),
        (scheme(4, strategy="group", group_size=32) | {"format": "nvfp4-pack-quantized"}, "compressed-tensors nvfp4-pack-quantized"),
        (scheme(9, strategy="group", group_size=32), "compressed-tensors of 9 bits"),
        (scheme(4, strategy="tensor_group"), "strategy tensor_group"),
        (scheme(8, strategy="channel") | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity format sparse-24-bitmask"),
        (scheme(8, strategy="channel") | {"transform_config": {"config_groups": {"R1": {}}}}, "turns activations"),
    ],
)
def test_other_formats_are_refused_by_name(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        decoded(entry, {"a.weight": numbers(4, 4)})


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_codes_are_never_taken_for_weights(dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match=r"a\.weight is stored as .*the codes of a quantized weight"):
        decoded(None, {"a.weight": torch.ones(8, 8).to(dtype), "a.SCB": torch.ones(8)})


def test_masks_and_positions_are_no_weights() -> None:
    tensors = {"h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8), "e.position_ids": torch.arange(4)[None]}
    assert set(decoded(None, tensors)) == set(tensors)
