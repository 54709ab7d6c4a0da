"""A KV cache of fewer bits: what ggml's own types make of numbers, what llama.cpp does before that, and that nothing else is rounded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor

from qlab.models.loading import load
from qlab.models.opening import OpenedModel
from qlab.serve.cached import KEPT, fp8, q4_0, q8_0, turned, with_cache
from qlab.serve.rounding import eight_bit_inputs, half_outputs
from qlab.support.errors import UserError

NUMBERS = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 96)


@pytest.mark.parametrize(("ours", "kind"), [(q8_0, GGMLQuantizationType.Q8_0), (q4_0, GGMLQuantizationType.Q4_0)])
def test_numbers_are_ggmls_to_the_bit(ours: object, kind: GGMLQuantizationType) -> None:
    assert callable(ours)
    numbers = NUMBERS.clone()
    numbers[0, 0, :, :32] = 0
    theirs = quants.dequantize(quants.quantize(numbers.numpy().reshape(-1, 96), kind), kind).astype(np.float32)
    assert torch.equal(ours(numbers), torch.from_numpy(theirs).view(numbers.shape))
    with pytest.raises(UserError, match="attention heads of 80 numbers"):
        ours(numbers[..., :80])


def test_turning_is_by_hadamards_matrix_and_undoes_itself() -> None:
    matrix = torch.ones(1, 1)
    for _ in range(6):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    numbers = torch.randn(5, 128, generator=torch.Generator().manual_seed(1))
    expected = torch.cat([numbers[:, :64] @ matrix, numbers[:, 64:] @ matrix], 1) / 8
    assert torch.allclose(turned(numbers, 64), expected, atol=1e-5)
    assert torch.allclose(turned(turned(numbers, 128), 128), numbers, atol=1e-5)


@pytest.mark.parametrize(("head", "keys_turned", "values_turned"), [(64, 64, 64), (128, 128, 64), (192, 64, 64), (96, 0, 0)])
def test_heads_are_turned_as_llamacpp_turns_them(head: int, keys_turned: int, values_turned: int) -> None:
    numbers = torch.randn(1, 2, 7, head, generator=torch.Generator().manual_seed(2))
    for found, size in zip(KEPT["q4_0"](numbers, numbers), (keys_turned, values_turned)):
        expected = turned(q4_0(turned(numbers, size)), size) if size else q4_0(numbers)
        assert torch.equal(found, expected)
    assert torch.equal(KEPT["fp8"](numbers, numbers)[0], fp8(numbers))


def test_an_outlier_costs_less_where_heads_are_turned() -> None:
    numbers = torch.randn(1, 2, 64, 64, generator=torch.Generator().manual_seed(3))
    numbers[..., 5] *= 30
    plain, spread = (q4_0(numbers) - numbers).square().mean(), (KEPT["q4_0"](numbers, numbers)[0] - numbers).square().mean()
    assert spread < 0.5 * plain


@torch.inference_mode()
def test_only_what_is_cached_is_rounded(tiny: OpenedModel, calibration: Tensor) -> None:
    model = load(tiny)
    seen: dict[str, list[Tensor]] = {}
    hooks = [
        model.get_submodule(f"model.layers.0.self_attn.{part}_proj").register_forward_hook(
            lambda _, inputs, output, part=part: seen.setdefault(part, []).append(output.clone())
        )
        for part in "qkv"
    ]
    exact = model(input_ids=calibration[:2]).logits
    off = []
    for cache in ("q8_0", "q4_0"):
        with with_cache(half_outputs(torch.float32), cache)(model):
            off.append(float((model(input_ids=calibration[:2], use_cache=False).logits - exact).abs().mean()))
    assert torch.equal(model(input_ids=calibration[:2]).logits, exact)
    assert all(torch.equal(one, each[0]) for each in seen.values() for one in each)  # what makes keys and values is as it was
    assert 0 < 4 * off[0] < off[1]
    assert with_cache(eight_bit_inputs, "f16") is eight_bit_inputs
    for hook in hooks:
        hook.remove()


@torch.inference_mode()
def test_keys_are_rounded_after_they_are_turned_by_their_positions(tiny: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Tensor] = []

    def kept(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        given.append(keys)
        return keys, values

    monkeypatch.setitem(KEPT, "q8_0", kept)
    model = load(tiny)
    with with_cache(half_outputs(torch.float32), "q8_0")(model):
        model(input_ids=torch.full((1, 6), 7), use_cache=False)
    first = given[0]  # of one token six times: without positions all keys would be the same
    assert not torch.allclose(first[:, :, 0], first[:, :, 5])
