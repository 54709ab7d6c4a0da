"""What is seen of a layer's inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qlab.walk.statistics import observed


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
