"""What is seen of a block by running it."""

from __future__ import annotations

import torch
from torch import nn

from qlab.walk.block import Block
from qlab.walk.grouping import input_groups


class Leaking(nn.Module):
    """A block whose norm and whose values are wanted elsewhere too: scales folded into them would show."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.v_proj, self.o_proj = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        read = self.norm(hidden)
        values = self.v_proj(read)
        return read + values.sin() + self.o_proj(values * 2)


def test_nothing_is_folded_into_what_is_read_elsewhere_too() -> None:
    torch.manual_seed(0)
    groups = input_groups(Block(0, "blocks.0.", Leaking(), {}), torch.randn(1, 4, 8))
    assert [(group.layers, group.norm, group.rows) for group in groups] == [(["v_proj"], None, None), (["o_proj"], None, None)]
