"""Predictions of a model of which one block is changed: what lies before that block is not computed again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from qlab.evaluate.kept import next_token_logits

BLOCK = re.compile(r"^(.*?)\.(\d+)\.")  # the list of blocks and the number of one, in the name of a layer


class FromBlock(Sequence[Tensor]):
    """The next_token_logits of a model for each of `windows`, int64 [windows, length], computed from one block on: those before it answer
    with what they made before. A class whose blocks read more of those before than hidden states is computed whole."""

    def __init__(self, model: nn.Module, layers: Iterable[str], windows: Tensor, expected: Sequence[Tensor]) -> None:
        """`layers`: names of layers in the blocks that will be changed. `expected`: what the model predicts as it is. Every block is
        computed until `advance` is called."""
        match = BLOCK.match(next(iter(layers), ""))
        found = model.get_submodule(match[1]) if match else None
        self._blocks = list(found) if isinstance(found, nn.ModuleList) else []
        self.model, self.windows, self.expected = model, windows, expected
        self.first, self._answers = 0, list[Any]()  # what block first − 1 made of each window

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        with self._answered(index):
            return next_token_logits(self.model, self.windows[index : index + 1])

    def block_of(self, layers: Iterable[str]) -> int:
        """The number of the first block that has any of these layers."""
        return min(int(match[2]) if self._blocks and (match := BLOCK.match(name)) else 0 for name in layers)

    @torch.no_grad()
    def advance(self, first: int) -> None:
        """Have the blocks before number `first` computed once, as they are now, and not again: if the predictions are then the `expected`
        ones, to the bit. If not, every block is computed from here on."""
        if first == self.first or not self._blocks:
            return
        if first < self.first:
            self.first = 0
        try:
            self._answers = [self._made_by(first - 1, index) for index in range(len(self))] if first else []
            self.first = first
            agrees = all(torch.equal(self[index].cpu(), self.expected[index].cpu()) for index in range(len(self)))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError):  # of a class that misses what it reads
            agrees = False
        if not agrees:
            self._blocks, self.first = [], 0

    def _made_by(self, block: int, index: int) -> Any:
        found = list[Any]()

        def note(_: nn.Module, __: Any, output: Any) -> None:
            found.append(output)
            raise _Seen

        hook = self._blocks[block].register_forward_hook(note)
        try:
            with suppress(_Seen), self._answered(index):
                next_token_logits(self.model, self.windows[index : index + 1])
        finally:
            hook.remove()
        return found[0]

    @contextmanager
    def _answered(self, index: int) -> Iterator[None]:
        """Within the context the blocks before `first` answer."""
        before = [(block, vars(block).get("forward")) for block in self._blocks[: self.first]]
        for block, _ in before:
            block.forward = lambda *_, **__: self._answers[index]
        try:
            yield
        finally:
            for block, own in before:
                del block.forward
                if own:
                    block.forward = own


class _Seen(Exception):
    """What a block made was seen: the rest of the model is not wanted."""
