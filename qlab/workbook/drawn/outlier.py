"""Lesson 1: what one large input channel does to the other weights of its group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qlab.methods.grid import fit_grid, grouped
from qlab.methods.rtn import rtn


@dataclass(frozen=True)
class Outlier:
    """The channel of a layer that stands out most in its group of consecutive channels.

    `channel` counts from 0; `times` is its root mean square over the median of its group's. `error_with` and `error_without` are the
    squared error of the group's *other* weights over all rows, relative to their squares, rounded with the channel in the group and
    without it. `row` is where the channel's weight is largest, `weights` float32 [group] the group there, `place` the channel's place in
    it. `levels_with` and `levels_without` float32 [2^bits]: the values that this row's codes stand for, in either case.
    """

    channel: int
    times: float
    error_with: float
    error_without: float
    row: int
    place: int
    weights: Tensor
    levels_with: Tensor
    levels_without: Tensor

    @property
    def harm(self) -> float:
        """By how many times the outlier makes the error of the others larger."""
        return self.error_with / max(self.error_without, 1e-30)


def worst_channel(weight: Tensor, group_size: int, bits: int) -> Outlier:
    """The outlier of `weight` [out, in], and what it costs the others of its group at `bits`.

    Raises:
        UserError: the group size does not divide the row.
    """
    weight = weight.float().cpu()
    size = weight.square().mean(0).sqrt()
    over = grouped(size[None], group_size)[0]
    over = over / over.median(-1, keepdim=True).values.clamp(min=1e-30)
    channel = int(over.argmax())
    width = over.shape[1]
    first, place = channel // width * width, channel % width
    group = weight[:, first : first + width]
    others = torch.cat([group[:, :place], group[:, place + 1 :]], dim=1)
    rounded = rtn(group, bits, -1).dequantize()
    beside = torch.cat([rounded[:, :place], rounded[:, place + 1 :]], dim=1)
    alone = rtn(others, bits, -1).dequantize()
    row = int(group[:, place].abs().argmax())
    return Outlier(
        channel, float(over.flatten()[channel]), relative(beside, others), relative(alone, others), row, place, group[row],
        levels(group[row], bits), levels(others[row], bits),
    )  # fmt: skip


def relative(approximation: Tensor, weight: Tensor) -> float:
    """The squared error over the squared weights."""
    return float((approximation - weight).square().sum() / weight.square().sum().clamp(min=1e-30))


def levels(group: Tensor, bits: int) -> Tensor:
    """The values that the codes of one group, float32 [group], stand for: float32 [2^bits]."""
    scale, zero = fit_grid(group, bits, symmetric=False)
    return (torch.arange(2**bits) - zero) * scale
