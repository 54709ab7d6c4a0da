"""Lesson 3: the eigenvalues of H, and how many of them damping hides."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 512  # channels whose H is taken apart: the time grows with their third power


@dataclass(frozen=True)
class Spectrum:
    """The eigenvalues of H, float64 falling, in units of the mean of its diagonal; of `taken` of its `channels`, evenly spaced."""

    values: Tensor
    taken: int
    channels: int

    def damped(self, damping: float) -> Tensor:
        """The eigenvalues once `damping` times the mean of the diagonal is added to the diagonal."""
        return self.values + damping

    def below(self, damping: float) -> float:
        """The share of the eigenvalues that are smaller than what is added: in these directions damping counts more than the text."""
        return float((self.values < damping).double().mean())

    def condition(self, damping: float = 0.0) -> float:
        """The largest over the smallest eigenvalue; infinite where H is singular."""
        damped = self.damped(damping)
        return float(damped[0] / damped[-1])


def spectrum(hessian: Tensor) -> Spectrum:
    """The spectrum of H = XᵀX `hessian` [in, in], not all zero; what rounding made negative is zero."""
    channels = len(hessian)
    taken = torch.linspace(0, channels - 1, min(channels, MOST)).round().long()
    part = hessian.cpu()[taken][:, taken].double()
    values = torch.linalg.eigvalsh(part / part.diagonal().mean())
    return Spectrum(values.flip(0).clamp(min=0), len(taken), channels)
