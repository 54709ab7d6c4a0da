"""A decoder of any transformers class without its weights: a block gets them when its turn comes.

It is built on the "meta" device. To learn what each block is called with, the model is run once with blocks that only take note of it,
so that no architecture is named.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qlab.models.checkpoint import finite
from qlab.models.experts import separate_experts
from qlab.models.layout import compute_buffers, empty_model
from qlab.models.opening import OpenedModel
from qlab.support.errors import UserError
from qlab.support.memory import pinned
from qlab.walk.block import Block
from qlab.walk.called import Arguments, told_apart
from qlab.walk.state.activations import Activations

READERS = 4  # threads that read a block's tensors ahead: one copies slower than a GPU quantizes
BESIDE = 2  # things that blocks of transformers' classes return beside hidden states, at most
PASSED_ON = object()  # stands for each of these: a block that is given one reads what another computed


class Skeleton:
    """A model without weights, and the checkpoint that its blocks are filled from."""

    def __init__(self, source: OpenedModel, device: str) -> None:
        """Build it.

        Raises:
            UserError: the model cannot be laid out, its checkpoint is not complete, or its blocks cannot be run one at a time.
        """
        source.check_complete()
        if source.not_walked:
            raise UserError(source.not_walked)
        self.name, self.checkpoint, self.layout, self.device = source.name, source.checkpoint, source.layout, device
        # What is stored quantized is decoded by PyTorch's own threads, and one after another: decoded tensors are large.
        self._reader = ThreadPoolExecutor(1 if source.checkpoint.quantized else READERS, "qlab-reader")
        self._ahead = dict[int, dict[str, Future[Tensor]]]()
        self._arguments: dict[int, list[Arguments]] = {}
        self._filled = set[str]()  # tensors outside the blocks
        self._beside = 0  # what the model's class takes from its blocks beside hidden states
        self.model = empty_model(source.configuration, source.name)
        separate_experts(self.model)
        blocks = self.model.get_submodule(self.layout.blocks)
        assert isinstance(blocks, nn.ModuleList)
        self.blocks = blocks
        inside = set(self.blocks.modules())
        around = self.model.get_submodule(self.layout.backbone).modules()  # what lies beside, such as an image encoder, is not run
        compute_buffers(self.model, (module for module in around if module not in inside), device)

    def __len__(self) -> int:
        return len(self.blocks)

    def rest(self) -> list[str]:
        """Names of the model's tensors outside the decoder blocks, in the checkpoint's order."""
        wanted = set(self.layout.rest)
        return [name for name in self.checkpoint.shapes if name in wanted]

    def fill(self, index: int) -> nn.Module:
        """Block `index` with its weights, in float32 on the device."""
        module = self.blocks[index].to_empty(device=self.device).requires_grad_(False)
        compute_buffers(self.model, module.modules(), self.device)
        ahead, prefix = self._ahead.get(index), self.layout.block(index)
        for name, tensor in module.state_dict().items():  # one at a time: never the block twice
            stored = ahead[name].result() if ahead else self.checkpoint.read(prefix + name)
            there = stored.to(self.device, non_blocking=True)  # as stored: a GPU widens it faster
            tensor.copy_(finite(prefix + name, there) if ahead else there)
        return module

    def read_ahead(self, index: int) -> None:
        """Begin to read block `index`, where it is computed on a GPU; `fill` then finds its weights in memory, as stored."""
        if torch.device(self.device).type == "cuda" and index < len(self) and index not in self._ahead:
            prefix = self.layout.block(index)
            # The largest first: else one thread reads it when the others are done.
            names = sorted(self.blocks[index].state_dict(), key=lambda name: -math.prod(self.checkpoint.shapes[prefix + name]))
            self._ahead[index] = {name: self._reader.submit(self._read_pinned, prefix + name) for name in names}

    def close(self) -> None:
        """Read nothing further ahead."""
        self._reader.shutdown(wait=False, cancel_futures=True)

    def _read_pinned(self, name: str) -> Tensor:
        return self.checkpoint.read_unseen(name, self._in_pinned)

    def _in_pinned(self, tensor: Tensor) -> Tensor:
        """A copy that the GPU takes by itself, made by this thread alone: PyTorch's others would wait for those of the other readers."""
        found = pinned(tensor.shape, tensor.dtype, self.device)
        np.copyto(bytes_of(found), bytes_of(tensor.contiguous()))
        return found

    def block(self, index: int, length: int) -> Block:
        """Block `index` with its weights, called as for windows of `length` tokens."""
        prefix = self.layout.block(index)
        linear = frozenset(name.removeprefix(prefix).removesuffix(".weight") for name in self.layout.linear if name.startswith(prefix))
        gates = tuple(name.removeprefix(prefix) for name in self.layout.gates if name.startswith(prefix))
        return Block(index, prefix, self.fill(index), self.called(index, length), linear=linear, gates=gates)

    def called(self, index: int, length: int) -> Arguments:
        """What block `index` is called with besides hidden states, for any number of windows of `length` tokens."""
        self.learn_arguments([length])
        return self._arguments[length][index]

    def release(self, index: int) -> None:
        """Give back the memory of block `index`."""
        self.blocks[index].to("meta")
        self._ahead.pop(index, None)

    @torch.no_grad()
    def embed(self, windows: Tensor, into: Activations) -> None:
        """Write the first block's inputs for the calibration windows int64 [windows, length]."""
        self.embed_each([(windows.split(1), into)])

    @torch.no_grad()
    def embed_each(self, groups: Sequence[tuple[Sequence[Tensor], Activations]]) -> None:
        """The same for groups of windows, int64 [1, length] each; those of a group are of one length."""
        found = self._with_embedding([window for group, _ in groups for window in group])
        for group, into in groups:
            into.write(self._capture(window, []) for window in islice(found, len(group)))
        next(found, None)  # the embedding is taken out again

    @torch.no_grad()
    def learn_arguments(self, lengths: Sequence[int]) -> None:
        """See what each block is called with besides hidden states, for windows of these lengths: positions, masks."""
        wanted = [length for length in lengths if length not in self._arguments]
        if not wanted:
            return
        windows = self._with_embedding([torch.zeros(1, length, dtype=torch.int64) for length in wanted])
        for window, length in zip(windows, wanted):  # the windows first: they take the embedding out again at their end
            one, two = list[Arguments](), list[Arguments]()
            self._capture(window, one)
            self._capture(window.expand(2, -1), two)
            self._arguments[length] = [told_apart(*calls, self.name) for calls in zip(one, two, strict=True)]

    def _with_embedding(self, windows: Sequence[Tensor]) -> Iterator[Tensor]:
        """The windows int64 [1, length] one by one, their tokens renumbered to an embedding of just the rows that occur."""
        self._fill_around()
        used, numbered = torch.unique(torch.cat(list(windows), 1), return_inverse=True)
        embedding: Any = self.model.get_input_embeddings()
        parts = []
        for first, part in self.checkpoint.rows(self.layout.embedding):
            here = used[(used >= first) & (used < first + len(part))] - first
            parts.append(part[here].float())
        empty, embedding.padding_idx = embedding.weight, None
        embedding.weight = nn.Parameter(torch.cat(parts).to(self.device), requires_grad=False)
        yield from numbered.split([window.shape[1] for window in windows], 1)
        embedding.weight = empty

    def _fill_around(self) -> None:
        """Give what is small around the blocks its weights: learned positions (OPT), a norm of the embedding (BLOOM)."""
        layout = self.layout
        towers = [name for name in layout.towers if not isinstance(self.model.get_submodule(name), nn.Linear)]
        apart = (layout.embedding, layout.head, *(f"{tower}." for tower in towers))
        within = (name for name in layout.rest if name.startswith(f"{layout.backbone}.".lstrip(".")))
        self.fill_outside(name for name in within if not name.startswith(apart))

    def fill_outside(self, names: Iterable[str]) -> None:
        """Give tensors outside the blocks their weights, in FP32; each is read once."""
        for name in names:
            if name not in self._filled:
                self._filled.add(name)
                fill(self.model, name, self.checkpoint.read(name).to(self.device, torch.float32))

    def _capture(self, window: Tensor, calls: list[Arguments]) -> Tensor:
        """Run the model with blocks that only note how they are called; the hidden states before the first."""
        done = len(calls)
        while True:
            try:
                return self._captured(window, calls)
            except ValueError:  # a class that takes apart what its blocks return (Bamba, BLOOM)
                if self._beside == BESIDE:
                    raise
                self._beside += 1
                del calls[done:]

    def _captured(self, window: Tensor, calls: list[Arguments]) -> Tensor:
        """The same, with blocks that return so many things beside hidden states."""
        found: list[Tensor] = []

        def note(hidden: Tensor, last: bool = False, **arguments: Any) -> Any:
            if any(value is PASSED_ON for value in arguments.values()):
                raise UserError(
                    f"blocks of {self.name} read more of the block before than hidden states, and qlab passes these alone to a block"
                )
            if found and hidden.shape == found[0].shape[1:]:
                raise ValueError("the class takes the first of what a block returns, and what it took is the first window")
            found.append(hidden)
            calls.append({name: value for name, value in arguments.items() if name not in ("past_key_values", "use_cache")})
            if last:
                raise _Captured
            return (hidden, *[PASSED_ON] * self._beside) if self._beside else hidden

        for index, block in enumerate(self.blocks):
            block.forward = _named(note, block, index + 1 == len(self.blocks))
        try:
            self.model.get_submodule(self.layout.backbone)(input_ids=window.to(self.device), use_cache=False)
        except _Captured:
            pass
        finally:
            for block in self.blocks:
                del block.forward
        if found[0].shape != (*window.shape, self.layout.hidden):
            raise UserError(
                f"the first block of {self.name} is given {list(found[0].shape[2:])} numbers a token and not a hidden state of "
                f"{self.layout.hidden}: qlab does not walk such models"
            )
        return found[0]


def bytes_of(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of a contiguous tensor in the machine's memory, not copied."""
    return tensor.flatten().view(torch.uint8).numpy()


def fill(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of the parameter or buffer `name` of a model without weights."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        module._buffers[leaf] = tensor


class _Captured(Exception):
    """What was wanted is there: the rest of the forward pass is not."""


def _named(note: Callable[..., Any], block: nn.Module, last: bool) -> Callable[..., Any]:
    """What stands for the forward method of a block: `note`, with what is passed by its place passed by its name."""
    names = list(inspect.signature(type(block).forward).parameters)[2:]  # behind the block itself and the hidden states
    return lambda hidden, *more, **named: note(hidden, last=last, **dict(zip(names, more)), **named)
