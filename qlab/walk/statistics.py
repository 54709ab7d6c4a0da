"""Statistics of a linear layer's inputs over the calibration text: all that a method may know of the data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qlab.methods.hessian import damp, shrink, trust
from qlab.support.precision import add_product

STRIPES = 4  # XᵀX is symmetric: of so many stripes of rows, only what lies on and above the diagonal is computed


@dataclass
class Statistics:
    """Of one layer's inputs x [tokens, in]: `hessian` = XᵀX float32 [in, in], the sum of |x| [in], the tokens seen.

    The Hessian is whole once `complete` was called; until then stripes below its diagonal are missing.
    """

    hessian: Tensor
    absolute_sum: Tensor
    tokens: int = 0

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

    def trusted(self) -> Tensor:
        """A new H, shrunk by what can be trusted of it and damped: float32 [in, in]."""
        return damp(shrink(self.hessian.clone(), self.trust))

    def add(self, inputs: Tensor) -> None:
        """Take in activations [..., in]."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        if not (rows.is_cuda and rows.dtype == torch.bfloat16):  # a GPU multiplies those as they are
            rows = rows.float()
        for stripe in self._stripes():
            add_product(self.hessian[stripe, stripe.start :], rows[:, stripe].T, rows[:, stripe.start :])
        self.absolute_sum += rows.norm(p=1, dim=0, dtype=torch.float32)  # no copy of the activations, as abs() would make
        self.tokens += len(rows)

    def complete(self) -> None:
        """Mirror what lies above the diagonal."""
        for stripe in self._stripes():
            self.hessian[stripe.stop :, stripe] = self.hessian[stripe, stripe.stop :].T

    def _stripes(self) -> list[slice]:
        size = len(self.hessian)
        height = -(-size // STRIPES)
        return [slice(first, min(first + height, size)) for first in range(0, size, height)]


@contextmanager
def observed(layers: dict[str, nn.Linear]) -> Iterator[dict[str, Statistics]]:
    """Within the context, every forward pass adds the inputs of `layers` to the statistics that are yielded, by name."""
    found, hooks = {}, []
    for name, layer in layers.items():
        size, device = layer.in_features, layer.weight.device
        found[name] = Statistics(torch.zeros(size, size, device=device), torch.zeros(size, device=device))
        hooks.append(layer.register_forward_pre_hook(lambda _, inputs, of=found[name]: of.add(inputs[0])))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        for statistics in found.values():
            statistics.complete()


@torch.inference_mode()
def collect(model: nn.Module, layers: dict[str, nn.Linear], windows: Tensor) -> dict[str, Statistics]:
    """Run the calibration windows, int64 [windows, length], through `model` and return the statistics of `layers`."""
    with observed(layers) as statistics:
        for window in windows.split(1):
            model(input_ids=window.to(next(model.parameters()).device), use_cache=False, logits_to_keep=1)
    return statistics
