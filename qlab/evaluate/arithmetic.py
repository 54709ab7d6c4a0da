"""A model computed as a runtime computes it, its weights as they are: in BF16, or with its KV cache in fewer bits.

The former is the noise floor: how far the original moves from itself when it is computed in BF16, as runtimes compute most models. A
distance below that cannot be seen in the answers of a runtime that computes in BF16. One that computes in FP16 has a lower floor.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from qlab.evaluate.kept import Predictor
from qlab.models.opening import OpenedModel
from qlab.serve.cached import with_cache
from qlab.serve.rounding import Rounding, half_outputs
from qlab.walk.by_block import BlockByBlock

FLOOR = "original, computed in BF16"


class Computed(nn.Module):
    """A model under a `rounding`. Its weights stay what they are, and so does the model itself outside calls of this one: it can be held
    against itself."""

    def __init__(self, model: nn.Module, rounding: Rounding) -> None:
        super().__init__()
        self.model, self.rounding = model, rounding

    def forward(self, **given: Any) -> Any:
        """What the model makes of `given`."""
        with self.rounding(self.model):
            return self.model(**given)


def in_bfloat16(model: nn.Module) -> nn.Module:
    """A model whose modules all hand on numbers of BF16."""
    return Computed(model, half_outputs(torch.bfloat16))


def floor_of(source: OpenedModel, original: Predictor, windows: Tensor, device: str) -> Predictor:
    """What the `original`, the model of `source` or its predictions for `windows` int64 [windows, length], predicts in BF16."""
    if isinstance(original, nn.Module):
        return in_bfloat16(original)
    return BlockByBlock(source, windows, device, rounding=half_outputs(torch.bfloat16))


def caching(cache: str) -> Rounding:
    """What keeps keys and values as a KV cache in `cache`, of qlab.plan.plan.CACHES, does, and rounds nothing else."""
    return with_cache(lambda _: nullcontext(), cache)


def cached_in(model: nn.Module, cache: str) -> nn.Module:
    """A model whose keys and values are rounded so."""
    return Computed(model, caching(cache))
