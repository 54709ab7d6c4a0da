"""Which tokens a mixture's experts are given, seen by running the block once: each expert's statistics are made of its own, one at a time.

What the experts read is written down, and which of them the router chose. An expert's tokens then go through it alone, so that no more
than one expert's H is in memory, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qlab.models.experts import Experts
from qlab.models.resting.layers import device_of
from qlab.support.disk.scratch import Scratch
from qlab.support.precision import quick_products
from qlab.walk.block import Block, usual_batch
from qlab.walk.state.activations import Activations
from qlab.walk.statistics import ChannelMeans, Statistics, observed, summed

RARE = 256  # tokens: an expert that was given fewer is shown others beside them, since so few tell too little of its inputs
ROWS = 1024  # tokens that go through an expert at a time


@dataclass
class Routing:
    """What the experts of one list read, float32 [windows, length, width], who was chosen for each token, int16 [tokens, k] a batch, and
    sums of |x| and x² over all tokens, float32 [width]."""

    inputs: Activations
    experts: int
    chosen: list[Tensor] = field(default_factory=list)
    absolute_sum: Tensor | None = None
    square_sum: Tensor | None = None

    @property
    def magnitude(self) -> Tensor:
        """Mean |x| of each channel over all tokens: float32 [width]."""
        assert self.absolute_sum is not None
        return self.absolute_sum / sum(map(len, self.chosen))

    @property
    def mean_square(self) -> Tensor:
        """Mean x² of each channel over all tokens: float32 [width]."""
        assert self.square_sum is not None
        return self.square_sum / sum(map(len, self.chosen))

    @property
    def enough(self) -> int:
        """How many tokens an expert is shown at least."""
        return min(RARE, sum(map(len, self.chosen)))

    def counts(self) -> list[int]:
        """How many tokens each expert was given."""
        found = torch.cat(self.chosen).long()
        return torch.bincount(found[found < self.experts], minlength=self.experts).tolist()

    def shown(self, expert: int) -> Shown:
        """The tokens that stand for an expert's inputs: its own, and where these are fewer than RARE, others evenly from the whole text."""
        own = torch.where((torch.cat(self.chosen) == expert).any(1))[0]
        return Shown(self.inputs, torch.cat([own, self.lacking(expert)]).sort().values)

    def lacking(self, expert: int) -> Tensor:
        """The numbers of those others, int64; none where it was given enough."""
        own = (torch.cat(self.chosen) == expert).any(1)
        others = torch.where(~own)[0]
        return others[torch.linspace(0, len(others) - 1, max(0, self.enough - int(own.sum()))).long()]

    def note(self) -> str:
        """Which experts saw no token or few, and what was done; empty where there are none."""
        few = {number: count for number, count in enumerate(self.counts()) if count < self.enough}
        if not few:
            return ""
        never = [str(number) for number, count in few.items() if not count]
        rarely = [f"{number} ({count})" for number, count in few.items() if count]
        said = [f"never given a token: {', '.join(never)}"] if never else []
        said += [f"given fewer than {self.enough} tokens: {', '.join(rarely)}"] if rarely else []
        done = f"Their statistics are of {self.enough} tokens, those that they lack taken evenly from the whole text"
        return f"experts {'; '.join(said)}. {done}"


@dataclass(frozen=True)
class Shown:
    """Single tokens of `inputs`, by their `numbers`, divided by the `scale` of their channels where there is one."""

    inputs: Activations
    numbers: Tensor
    scale: Tensor | None = None

    def batches(self, size: int) -> Iterator[Tensor]:
        """All of them in turn, ROWS at a time whatever `size` windows would be: float32 [tokens, width]."""
        for numbers in self.numbers.split(ROWS):
            found = self.inputs.tokens(numbers)
            yield found if self.scale is None else found / self.scale.to(found.device)


@contextmanager
def routed(block: Block, place: Callable[[str, int], Activations]) -> Iterator[dict[str, Routing]]:
    """Within the context, what the block's experts are given is written down, by the name of their list; `place`, asked with this name and
    the width of what they read, says where."""
    found, hooks = {}, []
    for path in block.experts:
        experts = block.expert_list(path)
        found[path] = Routing(place(path, width_of(experts)), len(experts))
        found[path].inputs.path.unlink(missing_ok=True)
        hooks.append(experts.register_forward_pre_hook(lambda _, given, of=found[path]: noted(of, *given)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def width_of(experts: nn.ModuleList) -> int:
    """The width of what experts read."""
    return next(module.in_features for module in experts.modules() if isinstance(module, nn.Linear))


def noted(routing: Routing, hidden: Tensor, chosen: Tensor, *_: Any) -> None:
    """Write down what a list of experts was called with."""
    done, rows = sum(len(batch) for batch in routing.chosen), hidden.reshape(-1, hidden.shape[-1]).float()
    routing.inputs.put(done, rows)
    sums = rows.abs().sum(0), rows.square().sum(0)
    routing.absolute_sum = sums[0] if routing.absolute_sum is None else routing.absolute_sum + sums[0]
    routing.square_sum = sums[1] if routing.square_sum is None else routing.square_sum + sums[1]
    routing.chosen.append(chosen.reshape(-1, chosen.shape[-1]).to("cpu", torch.int16))


def collect(model: nn.Module, layers: dict[str, nn.Linear], windows: Tensor) -> dict[str, Statistics]:
    """Run the calibration windows, int64 [windows, length], through `model` and return the statistics of `layers`."""
    return collect_beside(model, layers, {}, windows)[0]


@torch.inference_mode()
def collect_beside(
    model: nn.Module, layers: dict[str, nn.Linear], others: dict[str, nn.Linear], windows: Tensor, within: nn.Module | None = None
) -> tuple[dict[str, Statistics], dict[str, ChannelMeans]]:
    """The same, and the means of the channels that `layers` and `others` read, for which no H is made of these.

    Products and batches are those of a walk, so that a layer has the codes that a walk gives it when it is quantized by these. Experts
    that are modules of their own and are given fewer than RARE tokens are shown others beside them, as in a walk. Where all the layers lie
    `within` a block, the model is computed no further than that.
    """
    lists = [module for module in (within or model).modules() if isinstance(module, Experts)]
    device = device_of(next(iter((layers | others).values())))
    with quick_products(device), observed(layers) as statistics, summed(others) as sums, Scratch() as work:
        routings = [
            Routing(Activations(work / f"{index}", (*windows.shape, width_of(experts))), len(experts))
            for index, experts in enumerate(lists)
        ]
        hooks = [
            experts.register_forward_pre_hook(lambda _, given, of=routing: noted(of, *given)) for experts, routing in zip(lists, routings)
        ]
        if within is not None:
            hooks.append(within.register_forward_hook(enough))
        for some in windows.split(usual_batch(windows.shape[1], device.type)):
            with suppress(Enough):
                model(input_ids=some.to(next(model.parameters()).device), use_cache=False, logits_to_keep=1)
        for hook in hooks:
            hook.remove()
        for experts, routing in zip(lists, routings):
            for number, expert in enumerate(experts):
                for rows in Shown(routing.inputs, routing.lacking(number)).batches(1):
                    expert(rows.to(next(map(device_of, expert.children()))))
    return statistics, {name: found.means() for name, found in (statistics | sums).items()}


class Enough(Exception):
    """What was wanted is there: the rest of the forward pass is not."""


def enough(*_: Any) -> None:
    """A hook that ends the forward pass."""
    raise Enough
