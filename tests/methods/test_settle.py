"""Coordinate descent over finished codes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qlab.methods.gptq import gptq
from qlab.methods.grid import GroupedIntegers
from qlab.methods.hessian import damp
from qlab.methods.kquants.blocks import Superblocks, encode
from qlab.methods.kquants.kinds import KINDS
from qlab.methods.rtn import rtn
from qlab.methods.settle import descend, settle, settle_blocks


def correlated(columns: int = 64, tokens: int = 400) -> Tensor:
    """XᵀX of channels that are correlated."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return x.T @ x


def cost(layer: GroupedIntegers | Superblocks, weight: Tensor, hessian: Tensor) -> Tensor:
    """E·H·Eᵀ of each row, damped as the descent has it."""
    error = weight - layer.dequantize()
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    return ((error @ damped) * error).sum(-1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_row_comes_nearer_to_the_original_output(bits: int, symmetric: bool) -> None:
    weight, hessian = torch.randn(24, 64, generator=torch.Generator().manual_seed(1)), correlated()
    start = gptq(weight, hessian, bits, 32, symmetric, "group", search=False)
    settled, _ = settle(start, weight, damp(hessian.clone()))
    before, after = cost(start, weight, hessian), cost(settled, weight, hessian)
    assert (after <= before * 1.0001).all()
    assert after.sum() < 0.97 * before.sum()
    assert settled.zeros.equal(start.zeros)
    assert int(settled.codes.max()) < 2**bits


def test_at_rest_no_single_code_could_do_better() -> None:
    weight, hessian = torch.randn(8, 64, generator=torch.Generator().manual_seed(2)), correlated()
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(64)
    layer = rtn(weight, 3, 32)
    for _ in range(50):
        codes, bottoms = descend(layer.codes, layer.points, weight, damped)
        if codes.equal(layer.codes):
            break
        layer = replace(layer, codes=codes)
    else:
        pytest.fail("the descent does not come to rest")
    whole = cost(layer, weight, hessian)
    for column in (0, 31, 40, 63):
        for change in (-1, 1):
            codes = layer.codes.int()
            codes[:, column] = (codes[:, column] + change).clamp(0, 7)
            moved = GroupedIntegers(codes.to(torch.uint8), layer.scales, layer.zeros, 3)
            assert (cost(moved, weight, hessian) >= whole * 0.99999).all()
    steps = layer.scales.repeat_interleave(32, 1)
    inside = (layer.codes > 0) & (layer.codes < 7)
    assert ((bottoms.T - layer.dequantize()).abs() <= 0.501 * steps)[inside].all()


def test_blocks_of_columns_change_nothing_and_nothing_given_is_written_to() -> None:
    weight, hessian = torch.randn(6, 320, generator=torch.Generator().manual_seed(4)), correlated(320, 1000)
    layer = rtn(weight, 4, 64)
    kept = [tensor.clone() for tensor in (weight, hessian, layer.codes, layer.scales)]
    found, _ = descend(layer.codes, layer.points, weight, hessian)
    codes, present = layer.codes.clone(), layer.dequantize().double()
    for j in range(320):  # the same, column by column
        best = present[:, j] + (weight.double() - present) @ hessian[:, j].double() / hessian[j, j].double()
        scale, zero = layer.scales[:, j // 64].double(), layer.zeros[:, j // 64].double()
        codes[:, j] = ((best / scale).round() + zero).clamp(0, 15)
        present[:, j] = (codes[:, j] - zero) * scale
    assert (found != codes).float().mean() < 0.01  # FP32's own
    assert (layer.codes != codes).float().mean() > 0.1
    assert all(torch.equal(before, now) for before, now in zip(kept, (weight, hessian, layer.codes, layer.scales)))


def test_two_rounds_are_one_after_another() -> None:
    weight, hessian = torch.randn(12, 320, generator=torch.Generator().manual_seed(6)), correlated(320, 1000)
    layer = rtn(weight, 4, 64)
    once, _ = descend(layer.codes, layer.points, weight, hessian)
    again, bottoms = descend(once, layer.points, weight, hessian)
    both, bottoms_of_both = descend(layer.codes, layer.points, weight, hessian, rounds=2)
    assert (once != both).float().mean() > 0.02
    assert (again != both).float().mean() < 0.002  # FP32's own: the gradient is carried over, not computed anew
    assert float((bottoms - bottoms_of_both).abs().mean()) < 1e-3


@pytest.mark.parametrize(("order", "group_size"), [("static", 32), ("given", 32), ("group", -1)])
def test_every_order_of_consecutive_groups_gains(order: str, group_size: int) -> None:
    weight, hessian = torch.randn(24, 64, generator=torch.Generator().manual_seed(1)), correlated()
    searched = gptq(weight, hessian, 3, group_size, order=order, search=True)
    again, _ = settle(searched, weight, damp(hessian.clone()), rounds=1)
    assert cost(again, weight, hessian).sum() > 0.97 * cost(searched, weight, hessian).sum()  # there is little left to gain


def test_what_no_token_used_stays_as_it_was() -> None:
    weight, hessian = torch.randn(8, 64, generator=torch.Generator().manual_seed(3)), correlated()
    start = rtn(weight, 4, 32)
    assert settle(start, weight, damp(torch.zeros_like(hessian)), rounds=1)[0].codes.equal(start.codes)
    hessian[5], hessian[:, 5] = 0, 0
    weight[:, 5] = 0
    settled, bottoms = settle(rtn(weight, 4, 32), weight, damp(hessian.clone()))
    assert torch.isfinite(bottoms).all()
    assert torch.isfinite(settled.scales).all()
    assert (settled.dequantize()[:, 5] == 0).all()


def test_the_search_of_gptq_settles_and_its_control_does_not() -> None:
    weight, hessian = torch.randn(24, 64, generator=torch.Generator().manual_seed(1)), correlated()
    searched = gptq(weight, hessian, 3, 32, order="group", search=True)
    again, _ = descend(searched.codes, searched.points, weight, hessian + 0.01 * hessian.diagonal().mean() * torch.eye(64))
    moved = (again != searched.codes).float().mean()
    control = gptq(weight, hessian, 3, 32, order="group", search=True, compensate=False)
    assert moved < 0.1
    assert cost(control, weight, hessian).sum() > 1.2 * cost(searched, weight, hessian).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_llama_cpp_come_nearer_and_keep_their_scales(kind: str) -> None:
    weight, hessian = 0.02 * torch.randn(24, 512, generator=torch.Generator().manual_seed(1)), correlated(512, 2000)
    weight[3, 256:288] = 0  # a sub-block of zeros has a scale of zero
    start = encode(weight, kind, hessian.diagonal() / 2000)
    kept = start.codes.clone()
    settled = settle_blocks(start, weight, damp(hessian.clone()))
    before, after = cost(start, weight, hessian), cost(settled, weight, hessian)
    assert (after <= before * 1.0001).all()
    assert after.sum() < 0.8 * before.sum()
    assert start.codes.equal(kept)
    assert settled.codes.shape == start.codes.shape
    assert int(settled.codes.max()) <= KINDS[kind].levels
    assert all(getattr(settled, part) is getattr(start, part) for part in ("scales", "mins", "d", "dmin"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_points_of_a_block_are_what_its_codes_decode_to(kind: str) -> None:
    blocks = encode(torch.randn(4, 512, generator=torch.Generator().manual_seed(5)), kind)
    step, offset, levels, book = blocks.points
    codes = blocks.codes.float() if book is None else book.values_(blocks.codes.float())
    size = 512 // step.shape[1]
    values = codes.view(4, -1, size) * step[..., None] + offset[..., None]
    assert torch.allclose(values.view(4, 512), blocks.dequantize(), rtol=1e-4, atol=1e-5)
    assert levels == 2 ** KINDS[kind].bits - 1
