"""What is seen of a layer's inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qlab.walk.statistics import FIRST, observed


@pytest.mark.parametrize("width", [1, 3, 4, 30, 64])
def test_the_hessian_is_whole_whatever_its_width(width: int) -> None:
    layer, generator = nn.Linear(width, 2), torch.Generator().manual_seed(0)
    batches = [torch.randn(2, 5, width, generator=generator) for _ in range(3)]
    with observed({"layer": layer}) as seen:
        for batch in batches:
            layer(batch)
    inputs = torch.cat(batches).view(-1, width)
    found = seen["layer"]
    assert torch.allclose(found.hessian, inputs.T @ inputs, atol=1e-4)
    assert torch.allclose(found.hessian, found.hessian.T, atol=1e-5)
    assert torch.allclose(found.magnitude, inputs.abs().mean(0), atol=1e-5)
    assert torch.allclose(found.mean_square, inputs.square().mean(0), atol=1e-5)
    assert found.tokens == 30


@pytest.mark.parametrize("size", [0.01, 30.0])
def test_first_tokens_have_their_share_of_the_hessian_where_tokens_are_mixed(size: float) -> None:
    layer, inputs = nn.Linear(16, 2), torch.randn(6, 50, 16, generator=torch.Generator().manual_seed(0))
    inputs[:, 0] *= size
    with observed({"layer": layer}, ["layer"]) as seen:
        for batch in inputs.split(2):
            layer(batch)
    found, first = seen["layer"], inputs[:, 0]
    rest = found.hessian - first.T @ first
    share = float((found.attended() - rest).trace() / found.attended().trace())
    assert share == pytest.approx(max(FIRST, float((first.T @ first).trace() / found.hessian.trace())), rel=1e-3)
    assert torch.allclose(found.hessian, inputs.view(-1, 16).T @ inputs.view(-1, 16), rtol=1e-4, atol=1e-2)


def test_elsewhere_every_token_counts_once() -> None:
    layer = nn.Linear(8, 2)
    with observed({"layer": layer}) as seen:
        layer(torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(seen["layer"].attended(), seen["layer"].hessian)
