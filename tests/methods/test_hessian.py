"""Shrinking and damping of H."""

from __future__ import annotations

import torch
from torch import Tensor

from qlab.methods.awq import output_error
from qlab.methods.gptq import ORDERS, gptq
from qlab.methods.hessian import damp, shrink, trust
from qlab.methods.rtn import rtn
from tests.methods.test_settle import correlated


def test_shrinking_leaves_the_diagonal_and_takes_its_share_of_the_rest() -> None:
    hessian = correlated()
    beside = ~torch.eye(64, dtype=torch.bool)
    half = shrink(hessian.clone(), 0.5)
    assert half.diagonal().equal(hessian.diagonal())
    assert half[beside].equal(hessian[beside] / 2)
    assert shrink(hessian.clone(), 1.0).equal(hessian)


def test_no_token_is_trusted_with_nothing_and_very_many_with_all() -> None:
    assert trust(0, 64) == 0
    assert trust(64, 64) == 0.5
    assert trust(10**9, 64) > 0.9999


def test_a_hessian_of_zeros_is_damped_to_the_identity() -> None:
    assert damp(torch.zeros(3, 3)).equal(torch.eye(3))


def test_without_correlations_gptq_is_rtn() -> None:
    weight, hessian = torch.randn(24, 64, generator=torch.Generator().manual_seed(1)), correlated()
    for order in ORDERS:
        if order != "scattered":  # whose groups are others
            assert gptq(weight, hessian, 4, 32, order=order, trust=0.0).codes.equal(rtn(weight, 4, 32).codes)


def inputs(tokens: int, seed: int) -> Tensor:
    """X of 64 channels that are correlated in the same way whatever the seed."""
    mix = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    return torch.randn(tokens, 64, generator=torch.Generator().manual_seed(seed)) @ mix


def test_what_was_fitted_to_few_tokens_serves_others_better_when_shrunk() -> None:
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(1))
    seen, others = (x.T @ x for x in (inputs(48, 2), inputs(20000, 3)))

    def error(share: float, search: bool) -> float:
        return output_error(gptq(weight, seen, 3, 32, order="group", search=search, trust=share).dequantize(), weight, others)

    for search in (False, True):
        assert error(trust(48, 64), search) < 0.9 * error(1.0, search)
