"""Statistics of a linear layer's inputs over the calibration text: all that a method may know of the data."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qlab.methods.hessian import damp, shrink, trust
from qlab.models.resting.layers import device_of
from qlab.support.precision import add_product
from qlab.support.stages import stage

FIRST = 0.03  # share of H that the first tokens of the windows have at least, where other tokens read what the layer makes of them
STRIPES = 4  # XᵀX is symmetric: of so many stripes of rows, only what lies on and above the diagonal is computed


@dataclass
class Statistics:
    """Of one layer's inputs x [tokens, in]: `hessian` = XᵀX float32 [in, in], the sum of |x| [in], the tokens seen, and the largest |x| of
    each channel, float32 [in].

    The Hessian is whole once `complete` was called; until then stripes below its diagonal are missing. `mixes`: whether other tokens
    read what the layer makes of a token; then `first` holds the inputs of each window's first token, float32 [windows, in] a batch.
    """

    hessian: Tensor
    absolute_sum: Tensor
    tokens: int = 0
    mixes: bool = False
    first: list[Tensor] = field(default_factory=list)
    largest: Tensor = field(default_factory=lambda: torch.zeros(1))

    @property
    def magnitude(self) -> Tensor:
        """Mean |x| of each input channel: float32 [in]."""
        return self.absolute_sum / max(1, self.tokens)

    @property
    def mean_square(self) -> Tensor:
        """Mean x² of each input channel: float32 [in]; llama.cpp calls this the importance matrix."""
        return self.hessian.diagonal() / max(1, self.tokens)

    @property
    def trust(self) -> float:
        """The share of H's correlations that so many tokens can tell."""
        return trust(self.tokens, len(self.hessian))

    def attended(self) -> Tensor:
        """A new H float32 [in, in] to fit codes to: of layers that mix tokens, first tokens make up a share of FIRST at least.

        Many models attend from every token to the first one (attention sinks, Xiao et al. 2023), whose hidden state is unlike all
        others. An error of its key or value reaches every later token, but H counts it once a window: GPTQ then moves the errors of
        all other tokens into that one direction.
        """
        hessian = self.hessian.clone()
        if self.first:
            rows = torch.cat(self.first)
            energy, whole = rows.square().sum(), hessian.diagonal().sum()
            missing = FIRST / (1 - FIRST) * (whole - energy) - energy
            hessian.addmm_(rows.T, rows * (missing / energy.clamp(min=1e-30)).clamp(min=0))
        return hessian

    def trusted(self) -> Tensor:
        """A new H as `attended`, shrunk by what can be trusted of it and damped: float32 [in, in]."""
        return damp(shrink(self.attended(), self.trust))

    def add(self, inputs: Tensor) -> None:
        """Take in activations [..., in]; where tokens are mixed, [windows, length, in]."""
        if self.mixes and inputs.ndim == 3:
            self.first.append(inputs[:, 0].float().clone())  # a view would keep all the activations
        rows = inputs.reshape(-1, inputs.shape[-1])
        if not (rows.is_cuda and rows.dtype == torch.bfloat16):  # a GPU multiplies those as they are
            rows = rows.float()
        with stage("hessian"):
            for stripe in self._stripes():
                add_product(self.hessian[stripe, stripe.start :], rows[:, stripe].T, rows[:, stripe.start :])
            self.absolute_sum += rows.norm(p=1, dim=0, dtype=torch.float32)  # no copy of the activations, as abs() would make
            if len(rows):
                low, high = rows.aminmax(dim=0)
                self.largest = torch.maximum(self.largest.to(rows.device), torch.maximum(-low, high).float())
        self.tokens += len(rows)

    def complete(self) -> None:
        """Mirror what lies above the diagonal."""
        for stripe in self._stripes():
            self.hessian[stripe.stop :, stripe] = self.hessian[stripe, stripe.stop :].T

    def means(self) -> ChannelMeans:
        """What is left of them without H."""
        return ChannelMeans(self.magnitude, self.mean_square.clone())  # a view would keep H

    def _stripes(self) -> list[slice]:
        size = len(self.hessian)
        height = -(-size // STRIPES)
        return [slice(first, min(first + height, size)) for first in range(0, size, height)]


@dataclass(frozen=True)
class ChannelMeans:
    """Of one layer's inputs x [tokens, in]: the mean |x| and the mean x² of each channel, float32 [in]."""

    magnitude: Tensor
    mean_square: Tensor


@dataclass
class ChannelSums:
    """Of one layer's inputs x [tokens, in]: the sums of |x| and of x² [in], the tokens seen: a row each, where H has a row a channel."""

    absolute_sum: Tensor
    square_sum: Tensor
    tokens: int = 0

    def add(self, inputs: Tensor) -> None:
        """Take in activations [..., in]."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        self.absolute_sum += rows.norm(p=1, dim=0, dtype=torch.float32)
        self.square_sum += rows.float().square().sum(0)
        self.tokens += len(rows)

    def means(self) -> ChannelMeans:
        """Means over the tokens seen."""
        return ChannelMeans(self.absolute_sum / max(1, self.tokens), self.square_sum / max(1, self.tokens))


@contextmanager
def summed(layers: dict[str, nn.Linear]) -> Iterator[dict[str, ChannelSums]]:
    """Within the context, every forward pass adds the inputs of `layers` to the sums that are yielded, by name."""
    found = {name: ChannelSums(*torch.zeros(2, layer.in_features, device=device_of(layer))) for name, layer in layers.items()}
    with adding(layers, found):
        yield found


@contextmanager
def observed(layers: dict[str, nn.Linear], mixing: Collection[str] = ()) -> Iterator[dict[str, Statistics]]:
    """Within the context, every forward pass adds the inputs of `layers` to the statistics that are yielded, by name; `mixing` names
    those of which other tokens read what they make of a token."""
    found = {}
    for name, layer in layers.items():
        size, device = layer.in_features, device_of(layer)
        found[name] = Statistics(torch.zeros(size, size, device=device), torch.zeros(size, device=device), mixes=name in mixing)
    try:
        with adding(layers, found):
            yield found
    finally:
        for statistics in found.values():
            statistics.complete()


@contextmanager
def adding(layers: Mapping[str, nn.Linear], found: Mapping[str, Statistics] | Mapping[str, ChannelSums]) -> Iterator[None]:
    """Within the context, every forward pass adds the inputs of each of `layers` to what is `found` under its name."""
    hooks = [layer.register_forward_pre_hook(lambda _, inputs, of=found[name]: of.add(inputs[0])) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
