"""What lies behind a model's last block: its final norm and its head, computed by the model's own class with blocks that only pass on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qlab.walk.skeleton import Skeleton


@contextmanager
def exact(_: nn.Module) -> Iterator[None]:
    """Within the context a model computes as it is."""
    yield


class Tail:
    """The end of a model without weights: first its blocks are run, with `note` as a hook behind them, then `fill` reads the head."""

    def __init__(self, skeleton: Skeleton) -> None:
        """Read what is small outside the blocks.

        Raises:
            UserError: the checkpoint is damaged.
        """
        self._skeleton = skeleton
        self._things = 0  # that a block returns in a tuple, 0 if it returns hidden states alone
        layout = skeleton.layout
        apart = (layout.embedding, layout.head, *(f"{tower}." for tower in layout.towers))
        skeleton.fill_outside(name for name in skeleton.rest() if not name.startswith(apart))

    def note(self, _: nn.Module, __: Any, output: Any) -> None:
        """See how many things a block returns: a hook behind its forward method."""
        self._things = len(output) if isinstance(output, tuple) else 0

    def fill(self) -> None:
        """Read the head, in FP32; the embedding is given back."""
        model, layout, device = self._skeleton.model, self._skeleton.layout, self._skeleton.device
        embedding: Any = model.get_input_embeddings()  # what it makes of a token is not wanted any more
        embedding.weight, embedding.padding_idx = nn.Parameter(torch.zeros(1, embedding.embedding_dim, device=device), False), None
        head: Any = model.get_output_embeddings()
        head.weight = nn.Parameter(self._skeleton.checkpoint.read(layout.head).to(device, torch.float32), False)
        for tower in layout.towers:
            _emptied(model.get_submodule(tower), device)

    def logits(self, hidden: Tensor, rounding: Callable[[nn.Module], AbstractContextManager[None]] = exact) -> Tensor:
        """Logits float32 [length, vocabulary] of what the last block makes of a window: [1, length, hidden], on the device. `rounding`:
        within the context that it makes of the model, this computes as a runtime does."""
        model: Any = self._skeleton.model
        with rounding(model), self._answering((hidden, *[None] * (self._things - 1)) if self._things else hidden):
            tokens = torch.zeros(1, hidden.shape[1], dtype=torch.int64, device=hidden.device)
            return model(input_ids=tokens, use_cache=False).logits[0].float()

    @contextmanager
    def _answering(self, output: Any) -> Iterator[None]:
        """Within the context every block answers with `output`: the model computes what lies behind its last one."""
        for block in self._skeleton.blocks:
            block.forward = lambda *_, **__: output
        try:
            yield
        finally:
            for block in self._skeleton.blocks:
                del block.forward


def _emptied(tower: nn.Module, device: str) -> None:
    """Leave nothing of a tower's weights, which no text goes through, on the "meta" device: classes take their first weight's device for
    that of all (Idefics 3, SmolVLM)."""
    for module in tower.modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.is_meta:
                module._parameters[name] = nn.Parameter(torch.empty(0, device=device), False)
