"""One decoder block with its weights, the activations that go through it, and which of its layers read the same input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from qlab.support.errors import UserError
from qlab.walk.state.activations import Activations
from qlab.walk.statistics import Statistics, observed


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
class Block:
    """Decoder block `index` with its weights in float32; names of layers are relative to the block, whose name is `prefix`."""

    index: int
    prefix: str
    module: nn.Module
    arguments: dict[str, Any]
    groups: list[InputGroup] = field(default_factory=list)

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
            yield self.forward(hidden.to(self.device, non_blocking=True))

    def _run_to(self, layer: str, inputs: Activations, batch: int) -> None:
        """Run all inputs through the block, but no further than to the input of `layer`."""

        def stop(*_: Any) -> None:
            raise _Seen

        hook = self.layer(layer).register_forward_pre_hook(stop)  # after the hook that observes it
        try:
            for hidden in inputs.batches(batch):
                with suppress(_Seen):
                    self.forward(hidden.to(self.device, non_blocking=True))
        finally:
            hook.remove()

    @torch.no_grad()
    def observe(self, inputs: Activations, batch: int, outputs: Activations | None = None, through: bool = False) -> dict[str, Statistics]:
        """Statistics of every layer over `inputs`, layers of a group sharing theirs; the outputs go to `outputs` if given.

        Without these the block is computed no further than to its last layer's input, unless `through` says so.

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
                self._run_to(self.groups[-1].layers[0], inputs, batch)
        for group in self.groups:
            if not torch.isfinite(seen[group.layers[0]].absolute_sum).all():
                raise UserError(f"the inputs of {self.prefix}{group.layers[0]} are NaN or infinite: the model overflows on this text")
        return {name: seen[group.layers[0]] for group in self.groups for name in group.layers}


class _Seen(Exception):
    """The last layer's input was seen: the rest of the block is not wanted."""
