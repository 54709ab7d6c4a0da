"""What training an adapter did, without the model that it was trained on: of several models one is in memory at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tuned:
    """The `losses` of the steps, and those on some windows `before` and `after`, nats a token; bytes of the weights that were not trained.

    `factors` of each layer, by its name: B float32 [out, rank], A float32 [rank, in], and what their product is multiplied by.
    """

    losses: list[float]
    frozen_bytes: int
    before: list[float]
    after: list[float]
    factors: dict[str, tuple[Tensor, Tensor, float]] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """For a record."""
        return {"losses": self.losses, "frozen_bytes": self.frozen_bytes, "before": self.before, "after": self.after}

    @torch.no_grad()
    def merged(self, name: str, weight: Tensor) -> Tensor:
        """The weight float32 [out, in] of a layer with its adapter in it."""
        second, first, scaling = self.factors[name]
        return weight + (second.to(weight.device) @ first.to(weight.device)) * scaling
