"""One decoder block at a time, of any transformers model whose blocks lie in `model.layers`.

The model is built on the meta device, without memory for its weights; a block gets weights when its turn comes. Which
linear layers share an input, and which norm made it, is seen by running the block once, so that no architecture is named.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoConfig, AutoModelForCausalLM

from qlab.checkpoint import Checkpoint
from qlab.errors import UserError
from qlab.model import Source, weight_files
from qlab.statistics import Statistics, observed

PREFIX = "model.layers"


@dataclass
class Activations:
    """Hidden states float32 [windows, length, hidden] in a file: read and written a few windows at a time, never all in memory."""

    path: Path
    shape: tuple[int, int, int]

    def batches(self, size: int) -> Iterator[Tensor]:
        """Through the file: float32 [≤ size, length, hidden]."""
        window = self.shape[1] * self.shape[2]
        for first in range(0, self.shape[0], size):
            count = min(size, self.shape[0] - first)
            values = np.fromfile(self.path, np.float32, count * window, offset=4 * first * window)
            yield torch.from_numpy(values).view(count, *self.shape[1:])

    def pick(self, windows: Tensor) -> Tensor:
        """Some windows, in the order asked for: float32 [len(windows), length, hidden]."""
        window = self.shape[1] * self.shape[2]
        values = [np.fromfile(self.path, np.float32, window, offset=4 * int(index) * window) for index in windows]
        return torch.from_numpy(np.stack(values)).view(len(windows), *self.shape[1:])

    def write(self, batches: Iterator[Tensor]) -> None:
        """Fill the file with the batches in turn."""
        with self.path.open("wb") as stream:
            for batch in batches:
                batch.float().cpu().contiguous().numpy().tofile(stream)


@dataclass
class InputGroup:
    """Linear layers that read the same tensor; `norm` is the module that wrote it, where one did."""

    layers: list[str]
    norm: str | None = None


@dataclass
class Block:
    """Decoder block `index` with its weights in float32; names of layers are relative to the block."""

    index: int
    module: nn.Module
    arguments: dict[str, Any]
    groups: list[InputGroup] = field(default_factory=list)

    @property
    def prefix(self) -> str:
        return f"{PREFIX}.{self.index}."

    def layer(self, name: str) -> nn.Linear:
        found = self.module.get_submodule(name)
        assert isinstance(found, nn.Linear)
        return found

    @property
    def layers(self) -> list[str]:
        return [name for group in self.groups for name in group.layers]

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def forward(self, hidden: Tensor) -> Tensor:
        """The block's output, float32 [windows, length, hidden]."""
        return self.functional({}, hidden)

    def functional(self, parameters: dict[str, Tensor], hidden: Tensor) -> Tensor:
        """The output with `parameters`, by name, in place of the block's own."""
        output = functional_call(self.module, parameters, (hidden,), self.arguments)
        return output[0] if isinstance(output, tuple) else output

    @torch.no_grad()
    def outputs(self, inputs: Activations, batch: int) -> Iterator[Tensor]:
        """Run all inputs through the block."""
        for hidden in inputs.batches(batch):
            yield self.forward(hidden.to(self.device))

    @torch.no_grad()
    def observe(self, inputs: Activations, batch: int, outputs: Activations | None = None) -> dict[str, Statistics]:
        """Statistics of every layer over `inputs`, layers of a group sharing theirs; the outputs go to `outputs` if given.

        Raises:
            UserError: the activations of a layer are not finite.
        """
        with observed({group.layers[0]: self.layer(group.layers[0]) for group in self.groups}) as seen:
            results = self.outputs(inputs, batch)
            if outputs:
                outputs.write(results)
            else:
                for _ in results:
                    pass
        for group in self.groups:
            if not torch.isfinite(seen[group.layers[0]].absolute_sum).all():
                raise UserError(f"the inputs of {self.prefix}{group.layers[0]} are NaN or infinite: the model overflows on this text")
        return {name: seen[group.layers[0]] for group in self.groups for name in group.layers}


class Skeleton:
    """A model without weights, and the checkpoint that its blocks are filled from."""

    def __init__(self, source: Source, device: str) -> None:
        self.checkpoint = Checkpoint(weight_files(source.path))
        self.config = AutoConfig.from_pretrained(source.path, trust_remote_code=False)
        self.device = device
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
        for name, tensor in module.state_dict().items():  # one at a time: never the block twice
            tensor.copy_(self.checkpoint.read(f"{PREFIX}.{index}.{name}"))
        return module

    def release(self, index: int) -> None:
        """Give back the memory of block `index`."""
        self.blocks[index].to("meta")

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
        inner = self.model.get_submodule("model")
        for child, module in list(inner.named_children()):  # rotary embeddings: only buffers, computed from the configuration
            if next(module.parameters(), None) is None and next(module.buffers(), None) is not None:
                setattr(inner, child, type(module)(config=self.config).to(self.device))
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
    """The last block was reached: the rest of the model is not wanted."""


def _named(note: Callable[..., Tensor], last: bool) -> Callable[..., Tensor]:
    return lambda hidden, *arguments, **named: note(hidden, *arguments, last=last, **named)


@torch.no_grad()
def input_groups(block: Block, hidden: Tensor) -> list[InputGroup]:
    """Run the block once and see which linear layers read the same tensor, and whether a norm wrote it."""
    seen: list[tuple[Tensor, InputGroup]] = []
    written: list[tuple[Tensor, str]] = []
    hooks = []

    def reads(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            for tensor, group in seen:
                if tensor is inputs[0]:
                    group.layers.append(name)
                    return
            norm = next((module for tensor, module in written if tensor is inputs[0]), None)
            seen.append((inputs[0], InputGroup([name], norm)))

        return hook

    for name, module in block.module.named_modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_pre_hook(reads(name)))
        elif not list(module.children()) and getattr(module, "weight", None) is not None:
            hooks.append(module.register_forward_hook(lambda _, __, output, name=name: written.append((output, name))))
    block.forward(hidden)
    for hook in hooks:
        hook.remove()
    return [group for _, group in seen]
