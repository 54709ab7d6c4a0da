"""The noise floor: how far the original moves from itself when it is computed in BF16, as runtimes compute it.

A distance below that is none that a reader of the runtime's answers could see. What lies above it is a format's damage.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qlab.serve.rounding import half_outputs

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
