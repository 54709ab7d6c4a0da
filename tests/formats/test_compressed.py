"""Integers and floats in compressed-tensors: what is written reads back as it was meant."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from qlab.formats.compressed_tensors import scheme, writing
from qlab.formats.compressed_tensors.rounding import round_inputs
from qlab.formats.packing import WIDTHS
from qlab.formats.stored import describe, plain_tensors
from qlab.methods.activations import rounded_by_token
from qlab.methods.fp8 import Block, fp8, rounded_floats
from qlab.methods.grid import GroupedIntegers
from qlab.support.errors import UserError
from tests.formats.test_packed import random_tensor
from tests.formats.test_stored import InMemory

INT8 = writing.integers(8, -1, True, False)


def made(bits: int, groups: int, symmetric: bool, scattered: bool) -> GroupedIntegers:
    tensor = random_tensor(64, 192, groups, bits, seed=bits, lowest_zero=0)
    if symmetric:
        tensor = replace(tensor, zeros=torch.full_like(tensor.zeros, 2 ** (bits - 1)))
    if scattered:
        order = torch.randperm(192, generator=torch.Generator().manual_seed(5))
        tensor = replace(tensor, group_of=torch.argsort(order) // (192 // groups))
    return tensor


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(("groups", "scattered"), [(1, False), (3, False), (6, False), (6, True)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_written_reads_back(bits: int, groups: int, scattered: bool, symmetric: bool) -> None:
    tensor = made(bits, groups, symmetric, scattered)
    size = -1 if groups == 1 else 192 // groups
    quantization = writing.quantization_config(writing.integers(bits, size, symmetric, scattered))
    stored = InMemory({f"model.layers.0.mlp.up_proj.{kind}": part for kind, part in writing.pack(tensor, symmetric).items()})
    ((name, entry),) = plain_tensors(quantization, stored).items()
    parts = {role: stored.read(part) for role, part in entry.parts.items()}
    assert name == "model.layers.0.mlp.up_proj.weight"
    assert entry.shape == (64, 192)
    # The library rounds each product to the dtype of its scale.
    assert torch.equal(entry.decode(parts), tensor.dequantize().half().float())
    assert entry.integers is not None
    again = entry.integers(parts)
    assert torch.equal(again.codes, tensor.codes)
    assert torch.equal(again.scales, tensor.scales)
    assert torch.equal(again.zeros, tensor.zeros)
    assert (again.group_of is None) == (not scattered)
    assert torch.equal(again.dequantize(), tensor.dequantize())


def test_the_configuration_says_it_in_words() -> None:
    grouped, rows = writing.integers(4, 128, False, False), writing.integers(8, -1, True, False)
    assert describe(writing.quantization_config(grouped)) == "compressed-tensors, 4-bit int in groups of 128"
    assert describe(writing.quantization_config(rows)) == "compressed-tensors, 8-bit int a scale a row"
    assert describe(writing.quantization_config(*writing.floats(None))) == "compressed-tensors, 8-bit float a scale a row"
    assert describe(writing.quantization_config(*writing.floats((128, 128)))) == "compressed-tensors, 8-bit float in blocks"


def test_what_is_left_alone_is_named_so_that_readers_find_it() -> None:
    quantization = writing.quantization_config(
        writing.integers(4, 64, False, False), None, ["mlp.down_proj", "layers.3.mlp.up_proj"], ["vision_tower"]
    )
    ignored = [pattern.removeprefix("re:") for pattern in quantization["ignore"][1:]]
    assert quantization["ignore"][0] == "lm_head"

    def left(name: str) -> bool:
        return any(scheme.fits(pattern, name) for pattern in ignored)

    assert left("model.layers.11.mlp.down_proj")
    assert left("model.layers.3.mlp.up_proj")
    assert left("model.vision_tower.blocks.0.fc1")
    assert not left("model.layers.13.mlp.up_proj")
    assert not left("model.layers.3.mlp.up_proj2")
    assert not left("model.layers.3.mlp.gate_proj")


def test_what_the_format_cannot_hold_is_refused() -> None:
    with pytest.raises(UserError, match="store it as asymmetric"):
        writing.pack(made(4, 6, False, False), True)
    with pytest.raises(UserError, match="not both multiples of 32"):
        writing.pack(random_tensor(48, 192, 6, 4), False)


def test_int8_weights_for_8_bit_activations() -> None:
    tensor = made(8, 1, True, False)
    quantization = writing.quantization_config(INT8, writing.BY_TOKEN)
    stored = InMemory({f"a.{kind}": part for kind, part in writing.pack_int8(tensor).items()})
    ((name, entry),) = plain_tensors(quantization, stored).items()
    assert torch.equal(entry.decode({role: stored.read(part) for role, part in entry.parts.items()}), tensor.dequantize().half().float())
    assert name == "a.weight"
    assert stored.dtypes["a.weight"] == "I8"
    with pytest.raises(UserError, match="quantize them so"):
        writing.pack_int8(made(8, 3, True, False))


@pytest.mark.parametrize("block", [None, (128, 128)])
def test_fp8_weights_for_8_bit_activations(block: Block | None) -> None:
    tensor = fp8(torch.randn(256, 384, generator=torch.Generator().manual_seed(1)), block)
    quantization = writing.quantization_config(*writing.floats(block))
    stored = InMemory({f"a.{kind}": part for kind, part in writing.pack_floats(tensor).items()})
    ((name, entry),) = plain_tensors(quantization, stored).items()
    assert torch.equal(entry.decode({role: stored.read(part) for role, part in entry.parts.items()}), tensor.dequantize())
    assert name == "a.weight"
    assert stored.dtypes == {"a.weight": "F8_E4M3", "a.weight_scale": "F32"}


def layer_in_a_model() -> torch.nn.Module:
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 8))
    return model.requires_grad_(False)


def test_activations_are_rounded_before_the_layers_that_ask_for_it() -> None:
    model, inputs = layer_in_a_model(), torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    exact = model(inputs)
    quantization = writing.quantization_config(INT8, writing.BY_TOKEN)
    round_inputs(model, quantization, ["1"], "a model")
    hidden = model[0](inputs)  # type: ignore[operator]
    assert torch.equal(model(inputs), model[1].forward(rounded_by_token(hidden)))  # type: ignore[operator]
    assert not torch.equal(model(inputs), exact)
    plain = layer_in_a_model()
    round_inputs(plain, writing.quantization_config(writing.integers(4, 32, True, False)), ["0", "1"], "a model")
    assert not plain[0]._forward_pre_hooks  # type: ignore[index, union-attr]


@pytest.mark.parametrize(("block", "group"), [(None, None), ((16, 16), 16)])
def test_floats_are_rounded_by_token_or_by_as_many_channels_as_a_block_has(block: Block | None, group: int | None) -> None:
    model, inputs = layer_in_a_model(), torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    round_inputs(model, writing.quantization_config(*writing.floats(block)), ["1"], "a model")
    hidden = model[0](inputs)  # type: ignore[operator]
    assert torch.equal(model(inputs), model[1].forward(rounded_floats(hidden, group)))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dynamic": False}, "8-bit int by token, with stored scales"),
        ({"num_bits": 4}, "4-bit int by token"),
        ({"type": "float", "strategy": "tensor"}, "8-bit float by tensor"),
        ({"strategy": "group", "group_size": 32}, "8-bit int by group"),
        ({"type": "float", "strategy": "group"}, "8-bit float by group"),
        ({"strategy": "tensor"}, "8-bit int by tensor"),
    ],
)
def test_activations_of_another_kind_are_not_measured_as_if_they_were_exact(changed: dict[str, Any], message: str) -> None:
    quantization = writing.quantization_config(INT8, writing.BY_TOKEN | changed)
    with pytest.raises(UserError, match=message):
        round_inputs(layer_in_a_model(), quantization, ["0"], "a model")


@pytest.mark.parametrize(("kind", "levels"), [("int", 256), ("float", 255)])
def test_activations_are_rounded_by_a_stored_scale(kind: str, levels: int) -> None:
    model, inputs = layer_in_a_model(), torch.randn(500, 64, generator=torch.Generator().manual_seed(2))
    quantization = writing.quantization_config(INT8, writing.BY_TENSOR | {"type": kind})
    scale = torch.tensor(2.0 / (127 if kind == "int" else 448))
    round_inputs(model, quantization, ["0"], "a model", {"0": scale}.get)
    seen: list[torch.Tensor] = []
    model[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(inputs)
    (rounded,) = seen
    assert len((rounded / scale).unique()) <= levels
    assert float(rounded.abs().max()) == pytest.approx(2.0, rel=0.01)  # what is larger is cut off
    within = inputs.abs() < 2
    assert float((rounded - inputs)[within].abs().max()) <= (float(scale) / 2 if kind == "int" else 2 / 16) * 1.001
    with pytest.raises(UserError, match=r"scales that its files lack \(input_scale\)"):
        round_inputs(layer_in_a_model(), quantization, ["0"], "a model")


def test_layers_that_are_computed_together_are_not_measured() -> None:
    quantization = writing.quantization_config(INT8, writing.BY_TOKEN)
    with pytest.raises(UserError, match=r"before experts\.0\.up_proj, which transformers computes together"):
        round_inputs(layer_in_a_model(), quantization, ["experts.0.up_proj"], "a model")
