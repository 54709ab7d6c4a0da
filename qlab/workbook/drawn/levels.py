"""Lesson 5: weights as shares of their block's largest, and how evenly 16 levels are used by them."""

from __future__ import annotations

from torch import Tensor

from qlab.methods.nf4 import BLOCK, TINY, nearest

BLOCKS = 500  # of a layer that are looked at


def block_shares(weight: Tensor) -> Tensor:
    """The weights of a layer's first whole blocks over their block's absmax: float32 [n], from −1 to 1; no block, nothing."""
    weights = weight.float().flatten().cpu()
    blocks = weights[: len(weights) // BLOCK * BLOCK].view(-1, BLOCK)[:BLOCKS]
    return (blocks / blocks.abs().amax(-1, keepdim=True).clamp(min=TINY)).flatten()


def fullest(shares: Tensor, levels: Tensor) -> float:
    """The share of the weights whose nearest level is the one that most of them have; of 16 levels that are used evenly, 1/16."""
    return float(nearest(shares, levels).long().bincount().max() / len(shares))
