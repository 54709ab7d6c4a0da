"""AWQ and GPTQ checkpoints: packed as the libraries pack, read back as they meant them, run in their own layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.formats import awq, gptq
from qlab.formats.compressed_tensors import reading as compressed_tensors
from qlab.formats.packing import WIDTHS, pack_words, period, unpack_words
from qlab.formats.stored import plain_tensors
from qlab.methods.grid import GroupedIntegers
from qlab.methods.rtn import rtn
from qlab.models.checkpoint import OnPaper, open_checkpoint
from qlab.models.loading import load
from qlab.models.opening import OpenedModel, decoder_layers, locate
from qlab.peers import autoawq, autogptq
from qlab.support.errors import UserError
from tests.formats.checkpoints import dense_model, logits, quantized, scattered


def codes(rows: int, columns: int, seed: int, bits: int = 4) -> torch.Tensor:
    return torch.randint(0, 2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed))


def random_tensor(rows: int, columns: int, groups: int, bits: int, seed: int = 0, lowest_zero: int = 1) -> GroupedIntegers:
    zeros = codes(rows, groups, seed, bits).clamp(min=lowest_zero).short()
    scales = (torch.rand(rows, groups, generator=torch.Generator().manual_seed(seed)) * 0.01 + 0.001).half().float()
    return GroupedIntegers(codes(rows, columns, seed + 1, bits).to(torch.uint8), scales, zeros, bits)


# Words


@given(bits=st.sampled_from(WIDTHS), rows=st.integers(1, 5), periods=st.integers(1, 7), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_codes_come_back_from_words(bits: int, rows: int, periods: int, seed: int) -> None:
    wanted = codes(rows, periods * period(bits), seed, bits).to(torch.uint8)
    words = pack_words(wanted, bits)
    assert words.dtype == torch.int32
    assert words.shape == (rows, wanted.shape[1] * bits // 32)
    assert torch.equal(unpack_words(words, bits), wanted)


@pytest.mark.parametrize("bits", WIDTHS)
def test_words_are_one_stream_of_bits(bits: int) -> None:
    """Against arithmetic of another kind: Python's integers have no words."""
    wanted = codes(1, 64, 3, bits)
    stream = sum(code << (bits * place) for place, code in enumerate(wanted[0].tolist()))
    words = [stream >> (32 * i) & 0xFFFFFFFF for i in range(64 * bits // 32)]
    assert [word & 0xFFFFFFFF for word in pack_words(wanted, bits)[0].tolist()] == words


def test_what_does_not_fit_into_words_is_refused() -> None:
    with pytest.raises(UserError, match="multiple of 32"):
        pack_words(codes(2, 40, 0, 3), 3)
    with pytest.raises(UserError, match="codes of 9 bits"):
        pack_words(codes(2, 40, 0), 9)
    with pytest.raises(UserError, match="0 to 15 do not fit into 3 bits"):
        pack_words(torch.arange(32)[None] % 16, 3)


@dataclass
class Told:
    """The names, shapes and dtypes of stored tensors; but for its shape nothing of a tensor is read."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    def read(self, name: str, first: int = 0, count: int | None = None) -> torch.Tensor:
        assert name == "a.weight_shape", "read before it was checked"
        return torch.tensor([64, 256])


def told(**tensors: tuple[str, tuple[int, ...]]) -> Told:
    return Told({f"a.{name}": shape for name, (_, shape) in tensors.items()}, {f"a.{name}": dtype for name, (dtype, _) in tensors.items()})


GPTQ = {"qweight": ("I32", (32, 64)), "qzeros": ("I32", (8, 8)), "scales": ("F16", (8, 64)), "g_idx": ("I32", (256,))}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("g_idx", ("F16", (256,))),
        ("g_idx", ("I32", (255,))),
        ("g_idx", ("I32", (1, 256))),
        ("g_idx", ("BOOL", (256,))),
        ("scales", ("I32", (8, 64))),
        ("qzeros", ("I64", (8, 8))),
        ("qweight", ("F32", (32, 64))),
    ],
)
def test_gptq_of_another_form_is_refused_before_it_is_read(name: str, found: tuple[str, tuple[int, ...]]) -> None:
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq"}
    assert set(gptq.plain(quantization, told(**GPTQ))) == {"a.weight"}
    with pytest.raises(UserError, match=rf"a\.{name} is {found[0]} .*the rest of its layer asks for"):
        gptq.plain(quantization, told(**GPTQ | {name: found}))


PACKED = {"weight_packed": ("I32", (64, 32)), "weight_scale": ("BF16", (64, 8)), "weight_shape": ("I64", (2,))}
ZEROS = {"weight_zero_point": ("I32", (8, 8))}


@pytest.mark.parametrize(
    ("symmetric", "changed", "said"),
    [
        (True, {"weight_scale": ("BF16", (32, 8))}, "a.weight_scale is BF16 [32, 8]"),
        (True, {"weight_scale": ("BF16", (64, 8, 1))}, "a.weight_packed has rows of 32 words"),
        (True, {"weight_scale": ("I32", (64, 8))}, "a.weight_scale is I32"),
        (True, {"weight_packed": ("F32", (64, 32))}, "a.weight_packed is F32"),
        (True, {"weight_g_idx": ("F32", (256,))}, "weight_g_idx"),
        (False, {}, "has no zero points beside it"),
        (False, {"weight_zero_point": ("I32", (64, 8))}, "a.weight_zero_point is I32 [64, 8]"),
        (False, {"weight_zero_point": ("F32", (64, 8))}, "a.weight_zero_point is F32"),
    ],
)
def test_compressed_tensors_of_another_form_are_refused_before_they_are_read(
    symmetric: bool, changed: dict[str, tuple[str, tuple[int, ...]]], said: str
) -> None:
    weights = {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": 32}
    quantization = {"config_groups": {"g": {"targets": ["Linear"], "weights": weights}}, "format": "pack-quantized"}
    assert set(compressed_tensors.plain(quantization, told(**PACKED | ({} if symmetric else ZEROS)))) == {"a.weight"}
    with pytest.raises(UserError) as refused:
        compressed_tensors.plain(quantization, told(**PACKED | changed))
    assert said in str(refused.value)


# AWQ


@pytest.mark.parametrize(("rows", "columns", "size"), [(32, 256, 64), (96, 128, 128), (64, 96, 32)])
def test_awq_is_packed_as_autoawq_packs(rows: int, columns: int, size: int) -> None:
    from awq.modules.linear.gemm import WQLinear_GEMM

    tensor = random_tensor(rows, columns, columns // size, 4, lowest_zero=0)
    linear = torch.nn.Linear(columns, rows, bias=False)
    linear.weight.data = tensor.dequantize()
    theirs = WQLinear_GEMM.from_linear(linear, 4, size, scales=tensor.scales.T.contiguous(), zeros=tensor.zeros.T)
    ours = awq.pack(tensor)
    for name, stored in ours.items():
        wanted = getattr(theirs, name)
        assert stored.dtype == wanted.dtype, name
        assert torch.equal(stored, wanted), name


@given(words=st.integers(1, 5), groups=st.integers(1, 4), size=st.integers(1, 33), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_awq_comes_back(words: int, groups: int, size: int, seed: int) -> None:
    tensor = random_tensor(8 * words, groups * size, groups, 4, seed, lowest_zero=0)
    same(awq.unpack(awq.pack(tensor)), tensor)


def same(ours: GroupedIntegers, wanted: GroupedIntegers) -> None:
    for name in ("codes", "scales", "zeros"):
        got, expected = getattr(ours, name), getattr(wanted, name)
        assert got.dtype == expected.dtype, name
        assert got.is_contiguous(), name
        assert torch.equal(got, expected), name
    assert ours.bits == wanted.bits
    assert torch.equal(ours.dequantize(), wanted.dequantize())


def test_awq_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(UserError, match="4 bits, not 3"):
        awq.pack(random_tensor(32, 64, 2, 3))
    with pytest.raises(UserError, match="12 outputs"):
        awq.pack(random_tensor(12, 64, 2, 4))
    with pytest.raises(UserError, match="64 inputs cannot be cut into 3"):
        awq.pack(random_tensor(32, 64, 3, 4))
    with pytest.raises(UserError, match="consecutive columns only"):
        awq.pack(scattered(random_tensor(32, 64, 2, 4)))


# GPTQ


@pytest.mark.parametrize("bits", gptq.WIDTHS)
@pytest.mark.parametrize("size", [64, -1])
@pytest.mark.parametrize("scatter", [False, True])
def test_gptq_is_packed_as_autogptq_packs(bits: int, size: int, scatter: bool) -> None:
    rows, columns = 64, 192
    groups = 1 if size == -1 else columns // size
    tensor = random_tensor(rows, columns, groups, bits)
    if scatter:
        tensor = scattered(tensor)
    with autogptq.revived():
        from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear

        linear = torch.nn.Linear(columns, rows, bias=False)
        linear.weight.data = tensor.dequantize()
        layer = QuantLinear(bits, size, columns, rows, bias=False)
        layer.pack(linear, tensor.scales, tensor.zeros.float(), g_idx=None if tensor.group_of is None else tensor.group_of.int())
    theirs = {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
    ours = gptq.pack(tensor)
    assert list(ours) == list(theirs)
    for name in ("qweight", "qzeros", "g_idx"):
        assert ours[name].dtype == theirs[name].dtype, name
        assert torch.equal(ours[name], theirs[name]), name
    assert torch.equal(ours["scales"], theirs["scales"].half())
    assert torch.equal(gptq.unpack(theirs, bits=bits).dequantize(), tensor.dequantize())
    inputs = torch.randn(3, columns, generator=torch.Generator().manual_seed(0))
    for name, stored in ours.items():
        setattr(layer, name, stored.float() if name == "scales" else stored)
    assert torch.allclose(layer(inputs), inputs @ tensor.dequantize().T, atol=1e-4)


@given(
    bits=st.sampled_from(gptq.WIDTHS), version=st.sampled_from([1, 2]), rows=st.integers(1, 3), groups=st.integers(1, 4),
    size=st.integers(1, 5), scatter=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_gptq_comes_back(bits: int, version: int, rows: int, groups: int, size: int, scatter: bool, seed: int) -> None:
    tensor = random_tensor(32 * rows, groups * size * 32, groups, bits, seed, lowest_zero=1 if version == 1 else 0)
    if scatter:
        tensor = scattered(tensor, seed)
    stored = gptq.pack(tensor, version)
    same(gptq.unpack(stored, version, bits), tensor)
    if not scatter:
        stored.pop("g_idx")  # some writers leave out what is trivial
        same(gptq.unpack(stored, version, bits), tensor)


def test_the_versions_differ_by_one_in_the_zero_points() -> None:
    tensor = random_tensor(32, 64, 2, 4)
    first, second = gptq.pack(tensor, 1), gptq.pack(tensor, 2)
    assert torch.equal(first["qzeros"] + 0x11111111, second["qzeros"])  # as gptqmodel turns one into the other


@pytest.mark.parametrize("bits", gptq.WIDTHS)
def test_version_1_moves_groups_with_zero_point_0_where_there_is_room(bits: int) -> None:
    """As other quantizers than ours leave it: a group of zeros with codes and zero point 0."""
    tensor = rtn(torch.randn(32, 128, generator=torch.Generator().manual_seed(0)) * 0.02, bits, group_size=32)
    assert tensor.zeros.min() >= 1
    tensor.codes[3, 32:64], tensor.zeros[3, 1] = 0, 0
    stored = gptq.pack(tensor)
    back = gptq.unpack(stored, bits=bits)
    assert back.zeros.min() == 1
    assert torch.equal(back.dequantize(), tensor.dequantize())
    assert torch.equal(gptq.unpack(gptq.pack(tensor, 2), 2, bits).zeros, tensor.zeros)


def test_gptq_refuses_what_it_cannot_hold() -> None:
    full = random_tensor(32, 64, 2, 4)
    full.zeros[5, 1], full.codes[5, 40] = 0, 15
    with pytest.raises(UserError, match="has the zero point 0"):
        gptq.pack(full)
    gptq.pack(full, 2)
    with pytest.raises(UserError, match="32 outputs and 48 inputs are not both multiples of 32"):
        gptq.pack(random_tensor(32, 48, 2, 4))
    with pytest.raises(UserError, match="5 bits"):
        gptq.pack(random_tensor(32, 64, 2, 5))
    with pytest.raises(UserError, match="no version 3"):
        gptq.pack(random_tensor(32, 64, 2, 4), 3)
    with pytest.raises(UserError, match="64 inputs cannot be cut into 3"):
        gptq.pack(random_tensor(32, 64, 3, 4))


# Whole checkpoints


@pytest.mark.parametrize("size", [64, -1])
def test_our_awq_checkpoint_runs_in_autoawq(tiny: OpenedModel, tmp_path: Path, size: int) -> None:
    quantize = lambda weight: rtn(weight, 4, size)  # noqa: E731
    folder = quantized(tiny, tmp_path / "awq", awq.quantization_config(size, ["lm_head"]), quantize, awq.pack)
    expected = logits(dense_model(tiny, quantize))
    with autoawq.running(folder) as model:
        assert torch.allclose(logits(model), expected, atol=5e-3)  # it computes in FP16
    assert torch.allclose(logits(load(locate(str(folder)))), expected, atol=1e-5)


@pytest.mark.parametrize("bits", gptq.WIDTHS)
@pytest.mark.parametrize("act_order", [False, True])
def test_our_gptq_checkpoint_runs_in_autogptq(tiny: OpenedModel, tmp_path: Path, bits: int, act_order: bool) -> None:
    def quantize(weight: torch.Tensor) -> GroupedIntegers:
        tensor = rtn(weight, bits, 64, symmetric=not act_order)
        return scattered(tensor) if act_order else tensor

    entry = gptq.quantization_config(bits, 64, symmetric=not act_order, act_order=act_order)
    folder = quantized(tiny, tmp_path / "gptq", entry, quantize, gptq.pack)
    expected = logits(dense_model(tiny, quantize))
    with autogptq.running(folder) as model:
        assert torch.allclose(logits(model), expected, atol=1e-4)
    assert torch.allclose(logits(load(locate(str(folder)))), expected, atol=1e-5)


def test_version_2_is_read_as_version_2(tiny: OpenedModel, tmp_path: Path) -> None:
    quantize = lambda weight: rtn(weight, 3, 32)  # noqa: E731
    entry = gptq.quantization_config(3, 32, symmetric=False, act_order=False, version=2)
    folder = quantized(tiny, tmp_path / "v2", entry, quantize, lambda tensor: gptq.pack(tensor, 2))
    stored = open_checkpoint(folder, entry)
    for name, layer in decoder_layers(dense_model(tiny, quantize)).items():
        assert torch.equal(stored.read(f"{name}.weight"), layer.weight)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"quant_method": "awq", "bits": 3}, "AWQ gemm of 3 bits"),
        ({"quant_method": "gptq", "bits": 5}, "GPTQ gptq of 5 bits; qlab reads gptq, gptq_v2 of 2, 3, 4, 8 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "AWQ gemv"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "GPTQ marlin"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "8 bits|8-bit|INT8"),
        ({"quant_method": "quip"}, "quantized as quip"),
    ],
)
def test_other_checkpoints_are_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plain_tensors(entry, OnPaper({"a.qweight": (64, 8)}))
