"""Lesson 1: what one large weight does to the others of its group, which share its scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qlab.methods.grid import fit_grid, grouped, round_to_grid


@dataclass(frozen=True)
class Outlier:
    """A group of `layer`, float32 `weights` [group], and the `place` in it of its largest weight; of which `row`, at which `channel`.

    `bits` are those that the group is rounded to. The outlier's channel and the row count from 0.
    """

    layer: str
    row: int
    channel: int
    place: int
    weights: Tensor
    bits: int

    @property
    def others(self) -> Tensor:
        """The group with 0 in the outlier's place, which every grid has: the grid of the others alone. float32 [group]."""
        alone = self.weights.clone()
        alone[self.place] = 0
        return alone

    def enlarged(self, times: float) -> Outlier:
        """The same group with its outlier so many times as large."""
        weights = self.weights.clone()
        weights[self.place] *= times
        return replace(self, weights=weights)

    def step(self, group: Tensor) -> float:
        """The distance of two neighbouring values on the grid of a group, float32 [group]."""
        return float(fit_grid(group, self.bits, symmetric=False)[0])

    def levels(self, group: Tensor) -> Tensor:
        """The values that the codes of a group stand for, float32 [2^bits]."""
        scale, zero = fit_grid(group, self.bits, symmetric=False)
        return (torch.arange(2**self.bits) - zero) * scale

    def error(self, group: Tensor) -> float:
        """The squared error of the others on the grid of a group, over their squares."""
        scale, zero = fit_grid(group, self.bits, symmetric=False)
        rounded = (round_to_grid(self.others, scale, zero, self.bits) - zero) * scale
        return float((rounded - self.others).square().sum() / self.others.square().sum().clamp(min=1e-30))

    @property
    def wider(self) -> float:
        """How many times as wide the steps are with the outlier as without it."""
        return self.step(self.weights) / self.step(self.others)

    @property
    def harm(self) -> float:
        """How many times as large the others' error is with the outlier in their group as without it."""
        return self.error(self.weights) / max(self.error(self.others), 1e-30)


def worst_outlier(layers: Mapping[str, Tensor], group_size: int, bits: int) -> Outlier:
    """Of some layers' weights [out, in], the group whose steps its largest weight widens most.

    Raises:
        UserError: the group size does not divide a row.
    """
    return max((outlier_of(name, weight, group_size, bits) for name, weight in layers.items()), key=lambda found: found.wider)


def outlier_of(layer: str, weight: Tensor, group_size: int, bits: int) -> Outlier:
    """The group of one layer whose steps its largest weight widens most; raises as `worst_outlier` does."""
    groups = grouped(weight.float(), group_size)
    places = groups.abs().argmax(-1, keepdim=True)
    without = groups.scatter(-1, places, 0.0)
    wider = fit_grid(groups, bits, symmetric=False)[0] / fit_grid(without, bits, symmetric=False)[0]
    row, group = divmod(int(wider.argmax()), groups.shape[1])
    place = int(places[row, group])
    return Outlier(layer, row, group * groups.shape[2] + place, place, groups[row, group].cpu(), bits)
