"""One decoder block with its weights, the activations that go through it, and which of its layers read the same input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from qlab.support.errors import UserError
from qlab.walk.called import for_windows
from qlab.walk.state.activations import Activations, Batches
from qlab.walk.statistics import Statistics, observed

TOKENS_ON_CPU, WINDOWS_ON_GPU = 512, 8  # computed at a time: on a CPU, more no longer lie in its cache and take longer


@dataclass(frozen=True)
class Rows:
    """Output rows of the layer `writer`, `count` from `first` on, that a reader's channels follow: scale a row, and they scale.

    Heads of `width` channels are read `repeats` times each, one after the other (queries that share values).
    """

    writer: str
    first: int
    count: int
    repeats: int
    width: int

    @property
    def slice(self) -> slice:
        return slice(self.first, self.first + self.count)

    def spread(self, values: Tensor) -> Tensor:
        """Values of the rows [count], each at all the channels that follow it: [count · repeats]."""
        return values.view(-1, 1, self.width).expand(-1, self.repeats, -1).flatten()


@dataclass
class InputGroup:
    """Linear layers that read the same tensor; `norm` is the module that wrote it, or `rows` those whose scale it follows.

    `mixes`: whether other tokens read what the layers make of a token, as keys and values are read."""

    layers: list[str]
    norm: str | None = None
    rows: Rows | None = None
    mixes: bool = False


@dataclass
class Mixture:
    """A list of experts: the `groups` within each of them, which all are alike.

    Where a scale of what the experts read can be folded, `norm` wrote that, and nothing reads it but they, `layers` and `gates`.
    """

    groups: list[InputGroup]
    norm: str | None = None
    layers: list[str] = field(default_factory=list)
    gates: list[str] = field(default_factory=list)


@dataclass
class Block:
    """Decoder block `index` with its weights in float32; names of layers are relative to the block, whose name is `prefix`.

    `arguments`: what it is called with besides hidden states, for any number of windows (qlab.walk.called).
    `linear`: the layers that are quantized, None for all linear ones. `gates`: modules that choose or weigh experts. `experts`: lists of
    these by name. An expert is a block of its own, too (`parts`): `place` says which, its list's name and its number.
    """

    index: int
    prefix: str
    module: nn.Module
    arguments: dict[str, Any]
    groups: list[InputGroup] = field(default_factory=list)
    linear: frozenset[str] | None = None
    gates: tuple[str, ...] = ()
    experts: dict[str, Mixture] = field(default_factory=dict)
    place: tuple[str, int] | None = None

    def parts(self) -> Iterator[Block]:
        """The block without its experts, then every expert, as blocks of their own."""
        yield replace(self, experts={}) if self.experts else self
        for path, mixture in self.experts.items():
            for number in range(len(self.expert_list(path))):
                yield self.expert(path, number, mixture.groups)

    def expert(self, path: str, number: int, groups: list[InputGroup]) -> Block:
        """An expert of the list `path`."""
        module = self.expert_list(path)[number]
        return Block(self.index, f"{self.prefix}{path}.{number}.", module, {}, groups, place=(path, number))

    def expert_list(self, path: str) -> nn.ModuleList:
        found = self.module.get_submodule(path)
        assert isinstance(found, nn.ModuleList)
        return found

    def within(self, part: Block) -> str:
        """What the names of a part's layers begin with in this block."""
        return part.prefix.removeprefix(self.prefix)

    def layer(self, name: str) -> nn.Linear:
        found = self.module.get_submodule(name)
        assert isinstance(found, nn.Linear)
        return found

    def stacked(self, names: list[str]) -> Tensor:
        """The layers' weights one above another [out, in]; a single one is not copied."""
        weights = [self.layer(name).weight for name in names]
        return torch.cat(weights) if len(weights) > 1 else weights[0]

    @property
    def layers(self) -> list[str]:
        """The layers of all groups, those of experts included."""
        own = [name for group in self.groups for name in group.layers]
        if not self.experts:
            return own
        return own + [self.within(part) + name for part in self.parts() if part.place for name in part.layers]

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def forward(self, hidden: Tensor) -> Tensor:
        """The block's output, float32 [windows, length, hidden]."""
        return self.functional({}, hidden)

    def functional(self, parameters: dict[str, Tensor], hidden: Tensor) -> Tensor:
        """The output with `parameters`, by name, in place of the block's own."""
        output = functional_call(self.module, parameters, (hidden,), for_windows(self.arguments, len(hidden)))
        return output[0] if isinstance(output, tuple) else output

    @torch.no_grad()
    def outputs(self, inputs: Batches, batch: int) -> Iterator[Tensor]:
        """Run all inputs through the block."""
        for hidden in inputs.batches(batch):
            yield self.forward(hidden.to(self.device, non_blocking=True))

    def _run_to(self, modules: list[nn.Module], inputs: Batches, batch: int) -> None:
        """Run all inputs through the block, but no further than until each of `modules` was given its own."""
        waiting: set[nn.Module] = set()

        def stop(module: nn.Module, _: Any) -> None:
            waiting.discard(module)
            if not waiting:
                raise _Seen

        hooks = [module.register_forward_pre_hook(stop) for module in modules]  # after the hooks that observe them
        try:
            for hidden in inputs.batches(batch):
                waiting.update(modules)
                with suppress(_Seen):
                    self.forward(hidden.to(self.device, non_blocking=True))
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def observe(self, inputs: Batches, batch: int, outputs: Activations | None = None, through: bool = False) -> dict[str, Statistics]:
        """Statistics of every layer outside experts over `inputs`, layers of a group sharing theirs; outputs go to `outputs` if given.

        Without these the block is computed no further than to the inputs of its last layer and of its experts, unless `through` says so.

        Raises:
            UserError: the activations of a layer are not finite.
        """
        mixing = [group.layers[0] for group in self.groups if group.mixes]
        with observed({group.layers[0]: self.layer(group.layers[0]) for group in self.groups}, mixing) as seen:
            if outputs:
                outputs.write(self.outputs(inputs, batch))
            elif through:
                for _ in self.outputs(inputs, batch):
                    pass
            else:
                last = [self.layer(group.layers[0]) for group in self.groups[-1:]]
                self._run_to(last + [self.expert_list(path) for path in self.experts], inputs, batch)
        for group in self.groups:
            if not torch.isfinite(seen[group.layers[0]].absolute_sum).all():
                raise UserError(f"the inputs of {self.prefix}{group.layers[0]} are NaN or infinite: the model overflows on this text")
        return {name: seen[group.layers[0]] for group in self.groups for name in group.layers}


class _Seen(Exception):
    """The last layer's input was seen: the rest of the block is not wanted."""


def usual_batch(length: int, device: str) -> int:
    """Calibration windows of `length` tokens to compute at a time."""
    return max(1, TOKENS_ON_CPU // length) if torch.device(device).type == "cpu" else WINDOWS_ON_GPU
