"""NF4 and FP4 checkpoints, byte for byte what transformers saves through bitsandbytes, and loaded by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bitsandbytes.functional as library
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qlab.formats.bitsandbytes import pack, quantization_config, unpack
from qlab.methods.nf4 import KINDS, nf4, uniform_levels
from qlab.models.checkpoint import open_checkpoint
from qlab.models.loading import load
from qlab.models.opening import OpenedModel, decoder_layers
from qlab.peers import bitsandbytes as peer
from qlab.support.errors import UserError


def library_tensors(weight: torch.Tensor, kind: str, double: bool) -> dict[str, torch.Tensor]:
    packed, state = library.quantize_4bit(weight, quant_type=kind, blocksize=64, compress_statistics=double)
    return {"weight": packed} | {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


@given(
    kind=st.sampled_from(KINDS), double=st.booleans(), rows=st.integers(1, 40), columns=st.integers(1, 700), seed=st.integers(0, 999),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]), sort=st.sampled_from(["normal", "ties", "zeros", "zero rows"]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_stored_tensors_are_the_librarys(
    kind: str, double: bool, rows: int, columns: int, seed: int, dtype: torch.dtype, sort: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    if sort == "ties":  # many weights halfway between levels, and many equal blocks
        weight = torch.randint(-24, 25, (rows, columns), generator=generator) / 24
    elif sort == "zeros":
        weight = weight * 0
    elif sort == "zero rows":
        weight[::2] = 0
    weight = weight.to(dtype)
    tensor = nf4(weight, kind=kind, double=double)
    stored = pack(tensor)
    assert_equal(stored, library_tensors(weight, kind, double))
    back = unpack(stored)
    assert (back.kind, back.dtype, back.shape) == (kind, dtype, (rows, columns))
    assert torch.equal(back.dequantize(), tensor.dequantize())
    assert_equal(pack(back), stored)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [46, 64, 110])  # a short block; a whole one; one of each
def test_the_last_bit_falls_as_in_the_library(kind: str, size: int) -> None:
    """Weights on and beside the boundary between two levels, where a division and a product with the reciprocal part."""
    levels = library.get_4bit_type(kind, device="cpu").sort().values
    generator = torch.Generator().manual_seed(0)
    for absmax in torch.rand(200, generator=generator) + 0.01:
        edges = (levels[1:] + levels[:-1]) / 2 * absmax
        beside = [torch.nextafter(edges, torch.tensor(towards)) for towards in (-2.0, 2.0)]
        block = torch.cat([absmax[None], edges, *beside]).repeat(3)[:64]
        weight = torch.cat([block, block])[-size:][None] if size > 64 else block[None, :size]
        assert_equal(pack(nf4(weight, kind=kind)), library_tensors(weight, kind, double=False))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("double", [False, True])
def test_our_checkpoint_is_transformers_own(tiny: OpenedModel, tmp_path: Path, kind: str, double: bool) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    peer.quantize(tiny, theirs, kind, double)
    ours.mkdir()
    dense = load(tiny)
    state = load_file(tiny.path / "model.safetensors")
    for name, layer in decoder_layers(dense).items():
        tensor = nf4(state.pop(f"{name}.weight"), kind=kind, double=double)
        state |= {f"{name}.{part}": stored for part, stored in pack(tensor).items()}
        layer.weight.data = tensor.dequantize().to(tensor.dtype).float()  # a runtime decodes into the weight's own dtype
    save_file(state, ours / "model.safetensors", metadata={"format": "pt"})
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()

    entry: dict[str, Any] = json.loads((theirs / "config.json").read_text())["quantization_config"]
    assert quantization_config(kind, double) == entry
    (ours / "config.json").write_text(json.dumps(tiny.config | {"quantization_config": quantization_config(kind, double)}))
    running = AutoModelForCausalLM.from_pretrained(ours)
    for name, layer in decoder_layers(dense).items():
        stored = running.get_submodule(name).weight
        assert torch.equal(library.dequantize_4bit(stored.data, stored.quant_state).float(), layer.weight)
    tokens = torch.arange(1, 33)[None]
    with torch.no_grad():  # on CPUs with AVX512-BF16 the library multiplies in BF16, whatever dtype was asked for
        assert torch.allclose(running(tokens).logits.float(), dense(tokens).logits, atol=5e-2)
    stored = open_checkpoint(ours, entry)
    for name, layer in decoder_layers(dense).items():
        assert torch.equal(stored.read(f"{name}.weight").half().float(), layer.weight)


def test_what_bitsandbytes_does_not_store_is_refused() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="levels of nf4 and fp4 only"):
        pack(nf4(weight, uniform_levels()))
    with pytest.raises(UserError, match="expected a layer saved through bitsandbytes"):
        unpack({"weight": weight})
    packed, state = library.quantize_4bit(weight, quant_type="nf4", blocksize=128)
    with pytest.raises(UserError, match="blocks that qlab does not read"):
        unpack({"weight": packed} | {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()})
