"""A model of any transformers class whose blocks lie in `model.layers`, without its weights: a block gets them when its turn comes.

It is built on the meta device, and run with blocks that only note what they are called with, so that no architecture is named.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from qlab.models.checkpoint import Checkpoint
from qlab.models.opening import Source, weight_files
from qlab.support.errors import UserError
from qlab.walk.block import PREFIX, Activations, Block


def checkpoint_of(source: Source) -> Checkpoint:
    """The checkpoint of a model; of a folder that holds a configuration alone, the one that it describes, on paper."""
    if files := weight_files(source.path):
        return Checkpoint(files)
    config = AutoConfig.from_pretrained(source.path, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    return Checkpoint.on_paper({name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied})


class Skeleton:
    """A model without weights, and the checkpoint that its blocks are filled from."""

    def __init__(self, source: Source, device: str) -> None:
        self.checkpoint = Checkpoint(weight_files(source.path))
        self.config = AutoConfig.from_pretrained(source.path, trust_remote_code=False)
        self.device = device
        self._arguments: dict[int, list[dict[str, Any]]] = {}
        try:
            with torch.device("meta"):
                self.model = AutoModelForCausalLM.from_config(self.config, dtype=torch.float32).eval()
            self.blocks = self.model.get_submodule(PREFIX)
        except (ValueError, AttributeError) as error:
            raise UserError(
                f"qlab walks models whose decoder blocks lie in {PREFIX}; {source.name} is of another shape: {error}"
            ) from error
        if unknown := [name for name in self.model.state_dict() if name not in self.checkpoint.shapes and name != "lm_head.weight"]:
            raise UserError(
                f"the checkpoint of {source.name} lacks {unknown[0]} and {len(unknown) - 1} more that its configuration asks for"
            )
        inside = set(self.blocks.modules())
        self._compute_buffers(module for module in self.model.modules() if module not in inside)

    def __len__(self) -> int:
        return len(self.blocks)

    def rest(self) -> list[str]:
        """Names of the tensors outside the decoder blocks, in the checkpoint's order."""
        return [name for name in self.checkpoint.shapes if not name.startswith(f"{PREFIX}.")]

    def head(self) -> tuple[str, Tensor]:
        """The checkpoint's name of the output head, and by how much the final norm multiplies each channel: float32 [hidden]."""
        names = {id(module): name for name, module in self.model.named_modules()}
        head = f"{names[id(self.model.get_output_embeddings())]}.weight"
        if head not in self.checkpoint.shapes:  # tied
            head = f"{names[id(self.model.get_input_embeddings())]}.weight"
        width = self.checkpoint.shapes[head][1]
        norms = [(name, module) for name, module in self.model.get_submodule("model").named_children() if "norm" in name]
        if not norms:
            return head, torch.ones(width, device=self.device)
        name, norm = norms[-1]
        norm = copy.deepcopy(norm).to_empty(device=self.device)
        for kind, tensor in norm.state_dict().items():
            tensor.copy_(self.checkpoint.read(f"model.{name}.{kind}"))
        # Of mean 0 and mean square 1: RMS and layer norms leave it as it is, so what they make of it is their weight (or 1 + it).
        probe = 1.0 - 2.0 * (torch.arange(width, device=self.device) % 2)
        with torch.no_grad():
            return head, (norm(probe) - norm(-probe)) / 2 * probe

    def fill(self, index: int) -> nn.Module:
        """Block `index` with its weights, in float32 on the device."""
        module = self.blocks[index].to_empty(device=self.device).requires_grad_(False)
        self._compute_buffers(module.modules())
        for name, tensor in module.state_dict().items():  # one at a time: never the block twice
            tensor.copy_(self.checkpoint.read(f"{PREFIX}.{index}.{name}"))
        return module

    def block(self, index: int, length: int) -> Block:
        """Block `index` with its weights, called as for windows of `length` tokens."""
        if length not in self._arguments:
            self._arguments[length] = self.arguments(length)
        return Block(index, self.fill(index), self._arguments[length][index])

    def release(self, index: int) -> None:
        """Give back the memory of block `index`."""
        self.blocks[index].to("meta")

    @torch.no_grad()
    def _compute_buffers(self, modules: Iterable[nn.Module]) -> None:
        """Buffers that no checkpoint holds, such as rotary frequencies or Gemma's scale of the embedding, as transformers makes them.

        Raises:
            UserError: one that transformers does not make again.
        """
        for module in modules:
            for name in module._non_persistent_buffers_set:
                # Not a number, so that one left as it was shows.
                module._buffers[name] = torch.full_like(module.get_buffer(name), torch.nan, dtype=torch.float32, device=self.device)
            if module._non_persistent_buffers_set:
                self.model._init_weights(module)
            for name in module._non_persistent_buffers_set:
                if not module.get_buffer(name).isfinite().all():
                    raise UserError(f"qlab cannot walk this model: {type(module).__name__} keeps a {name} that no checkpoint holds")

    @torch.no_grad()
    def embed(self, windows: Tensor, into: Activations) -> None:
        """Write the first block's inputs for the calibration windows int64 [windows, length]."""
        into.write(self._capture(window, []) for window in self._with_embedding(windows))

    @torch.no_grad()
    def arguments(self, length: int) -> list[dict[str, Any]]:
        """What each block is called with besides hidden states, for windows of `length` tokens: positions, masks."""
        calls: list[dict[str, Any]] = []
        for window in self._with_embedding(torch.zeros(1, length, dtype=torch.int64)):
            self._capture(window, calls)
        return calls

    def _with_embedding(self, windows: Tensor) -> Iterator[Tensor]:
        """The windows one by one, their tokens renumbered to an embedding of just the rows that occur."""
        used, numbered = torch.unique(windows, return_inverse=True)
        embedding = self.model.get_input_embeddings()
        name = next(n for n, module in self.model.named_modules() if module is embedding) + ".weight"
        parts = []
        for first, part in self.checkpoint.rows(name):
            here = used[(used >= first) & (used < first + len(part))] - first
            parts.append(part[here].float())
        empty, embedding.padding_idx = embedding.weight, None
        embedding.weight = nn.Parameter(torch.cat(parts).to(self.device), requires_grad=False)
        yield from numbered.split(1)
        embedding.weight = empty

    def _capture(self, window: Tensor, calls: list[dict[str, Any]]) -> Tensor:
        """Run the model with blocks that only note how they are called; the hidden states before the first."""
        found: list[Tensor] = []

        def note(hidden: Tensor, *_: Any, last: bool = False, **arguments: Any) -> Tensor:
            found.append(hidden)
            calls.append({name: value for name, value in arguments.items() if name not in ("past_key_values", "use_cache")})
            if last:
                raise _Captured
            return hidden

        for index, block in enumerate(self.blocks):
            block.forward = _named(note, index + 1 == len(self.blocks))
        try:
            self.model.get_submodule("model")(input_ids=window.to(self.device), use_cache=False)
        except _Captured:
            pass
        finally:
            for block in self.blocks:
                del block.forward
        return found[0]


class _Captured(Exception):
    """What was wanted is there: the rest of the forward pass is not."""


def _named(note: Callable[..., Tensor], last: bool) -> Callable[..., Tensor]:
    return lambda hidden, *arguments, **named: note(hidden, *arguments, last=last, **named)
