"""The noise floor: how far the original moves from itself when it is computed in BF16, as runtimes compute most models.

A distance below that cannot be seen in the answers of a runtime that computes in BF16. One that computes in FP16 has a lower floor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qlab.evaluate.kept import Predictor
from qlab.models.opening import OpenedModel
from qlab.serve.rounding import half_outputs
from qlab.walk.by_block import BlockByBlock

FLOOR = "original, computed in BF16"


class InBfloat16(nn.Module):
    """A model whose modules all hand on numbers of BF16. Its weights stay what they are, and so does the model itself outside calls of
    this one: it can be held against itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.rounding = model, half_outputs(torch.bfloat16)

    def forward(self, **given: Any) -> Any:
        """What the model makes of `given`."""
        with self.rounding(self.model):
            return self.model(**given)


def in_bfloat16(source: OpenedModel, original: Predictor, windows: Tensor, device: str) -> Predictor:
    """What the `original`, the model of `source` or its predictions for `windows` int64 [windows, length], predicts in BF16."""
    if isinstance(original, nn.Module):
        return InBfloat16(original)
    return BlockByBlock(source, windows, device, rounding=half_outputs(torch.bfloat16))
