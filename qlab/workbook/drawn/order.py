"""Lesson 3: the same layer by GPTQ with its columns in three orders; nothing else differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qlab.methods.gptq import inverse_factor, one_pass
from qlab.methods.hessian import damp

DAMPING = 0.01  # the guide's
ROWS, MOST = 64, 512  # outputs, and input channels, that are looked at: a second on two cores
LARGEST, GIVEN, SMALLEST = "largest first", "as they stand", "smallest first"  # the last is the control


@dataclass(frozen=True)
class Order:
    """GPTQ with its columns in one order. `places` int64 [in]: the column at each place of the walk. `so_far` float64 [in]: the relative
    squared output error once that column is rounded and those to come have taken its error over; by H with its damping, as GPTQ counts."""

    places: Tensor
    so_far: Tensor


@dataclass(frozen=True)
class Ordered:
    """Of the input channels that are looked at, of a layer's `channels`: `sizes` float32 [looked at], the diagonal of H in its means, and
    GPTQ over them in each order, by its name."""

    sizes: Tensor
    orders: Mapping[str, Order]
    channels: int

    @property
    def gain(self) -> float:
        """What share of the error that the columns leave as they stand is left with the largest first."""
        return float(self.orders[LARGEST].so_far[-1] / self.orders[GIVEN].so_far[-1].clamp(min=1e-30))

    def rounded(self, name: str, count: int) -> Tensor:
        """Which channels are rounded after `count` columns, bool [in], the channels by falling size."""
        done = torch.zeros(len(self.sizes), dtype=torch.bool)
        done[self.orders[name].places[:count]] = True
        return done[self.sizes.argsort(descending=True, stable=True)]


def in_orders(weight: Tensor, hessian: Tensor, bits: int) -> Ordered:
    """The first ROWS rows of `weight` [out, in] against H = XᵀX `hessian` [in, in], at most MOST channels, evenly spaced; one grid a row,
    the same in every order."""
    channels = len(hessian)
    chosen = torch.linspace(0, channels - 1, min(channels, MOST)).round().long()
    hessian = hessian.float().cpu()[chosen][:, chosen]
    weight = weight[:ROWS].float().cpu()[:, chosen].masked_fill(hessian.diagonal() == 0, 0)
    sizes = hessian.diagonal()
    falling = sizes.argsort(descending=True, stable=True)
    places = {LARGEST: falling, GIVEN: torch.arange(len(sizes)), SMALLEST: falling.flip(0)}
    signal = damped_signal(weight, hessian)  # the same in every order
    orders = {name: walked(weight, hessian, found, bits, signal) for name, found in places.items()}
    return Ordered(sizes / sizes.mean(), orders, channels)


def damped_signal(weight: Tensor, hessian: Tensor) -> Tensor:
    """The squared output itself, by H with its damping: trace(W H Wᵀ), float64."""
    damped = damp(hessian.double().clone(), DAMPING)
    return ((weight.double() @ damped) * weight.double()).sum().clamp(min=1e-30)


def walked(weight: Tensor, hessian: Tensor, places: Tensor, bits: int, signal: Tensor) -> Order:
    """GPTQ in the order `places`, on grids that are fixed beforehand; errors are relative to `signal`.

    A column that stood at w when its turn came and was rounded to ŵ adds (w − ŵ)² / U_jj² to the output's squared error (the paper's
    equation 2, summed over the rows); so the error so far is known at each place.
    """
    factor, _ = inverse_factor(hessian, places, DAMPING)
    assert factor is not None  # only an H that is not finite has none
    layer, stood = one_pass(weight, factor, places, bits, len(places), False, "static", False, True, "")
    errors = (stood - layer.dequantize())[:, places].double() / factor.diagonal().double()
    return Order(places, errors.square().sum(0).cumsum(0) / signal)


def most_uneven(hessians: Mapping[str, Tensor]) -> str:
    """The layer whose input channels differ most in size: the largest of H's diagonal over its mean."""
    return max(hessians, key=lambda name: float(hessians[name].diagonal().max() / hessians[name].diagonal().mean().clamp(min=1e-30)))
