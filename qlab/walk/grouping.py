"""Which linear layers of a block share an input, and where a scale of that input can be folded: seen by running the block.

A few runs of one window through one block, once a walk; so no architecture is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qlab.models.experts import Experts
from qlab.walk.block import Block, InputGroup, Mixture, Rows

SAME = 1e-5  # of a token's length: float32 rounds
Groups = tuple[list[InputGroup], dict[str, Mixture]]
"""Those of a block, and its lists of experts."""


class NotFollowed(Exception):
    """The reader's input does not follow the rows: the rest of the forward pass is not wanted."""


@torch.no_grad()
def input_groups(block: Block, hidden: Tensor) -> list[InputGroup]:
    """Run the block and see which linear layers read the same tensor, and whether a norm wrote it or it follows a layer's rows."""
    seen: list[tuple[Tensor, InputGroup]] = []
    written: list[tuple[Tensor, str]] = []
    called: list[str] = []
    hooks = []

    def reads(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            called.append(name)
            for tensor, group in seen:
                if tensor is inputs[0]:
                    group.layers.append(name)
                    return
            norm = next((module for tensor, module in written if tensor is inputs[0]), None)
            seen.append((inputs[0], InputGroup([name], norm)))

        return hook

    for name, module in block.module.named_modules():
        if isinstance(module, nn.Linear):
            if block.linear is None or name in block.linear:
                hooks.append(module.register_forward_pre_hook(reads(name)))
        elif not list(module.children()) and getattr(module, "weight", None) is not None:
            hooks.append(module.register_forward_hook(lambda _, __, output, name=name: written.append((output, name))))
    output = block.forward(hidden)
    for hook in hooks:
        hook.remove()
    for tensor, group in seen:
        width, earlier = tensor.shape[-1], called[: called.index(group.layers[0])][::-1]  # the nearest first: it mostly is the one
        if group.norm is not None:
            alone = follows(block, hidden, output, tensor, group.layers, Rows(group.norm, 0, width, 1, width))
            group.norm = group.norm if alone else None
        else:
            trials = (rows for writer in earlier for rows in possible_rows(block, writer, group.layers[0]))
            group.rows = next((rows for rows in trials if follows(block, hidden, output, tensor, group.layers, rows)), None)
        group.mixes = mixes(block, hidden, output, group.layers)
    return [group for _, group in seen]


def find_groups(block: Block, hidden: Tensor) -> Groups:
    """The groups of the block's layers outside experts, and its lists of experts, seen by running it on `hidden`."""
    lists = [name for name, part in block.module.named_modules() if isinstance(part, Experts)]
    names = block.linear or frozenset()
    own = replace(block, linear=frozenset(name for name in names if not name.startswith(tuple(f"{path}." for path in lists))))
    return input_groups(own, hidden), mixtures(own, lists, hidden)


@torch.no_grad()
def mixtures(block: Block, lists: Iterable[str], hidden: Tensor) -> dict[str, Mixture]:
    """The block's `lists` of experts: the groups within the first expert, as which all are made, and who else reads what it reads."""
    found = {}
    for path in lists:
        expert = block.expert(path, 0, [])
        width = next(module.in_features for module in expert.module.modules() if isinstance(module, nn.Linear))
        rows = torch.randn(1, hidden.shape[1], width, generator=torch.Generator().manual_seed(0)).to(block.device)
        found[path] = readers_beside(block, path, hidden, Mixture(input_groups(expert, rows)))
    return found


def readers_beside(block: Block, path: str, hidden: Tensor, mixture: Mixture) -> Mixture:
    """The mixture with the norm that wrote what its experts read and all others that read it, where these are layers and gates alone.

    Tried like `follows`: a positive factor on each channel, divided out again by all readers, must leave the block's output as it was.
    """
    written: list[tuple[str, Tensor]] = []
    read: list[tuple[str, Tensor]] = []
    modules = dict(block.module.named_modules())
    hooks: list[RemovableHandle] = []
    for name, module in modules.items():
        if name == path or name in block.gates or (block.linear is not None and name in block.linear):
            hooks.append(module.register_forward_pre_hook(lambda _, inputs, name=name: read.append((name, inputs[0]))))
        elif not list(module.children()) and getattr(module, "weight", None) is not None:
            hooks.append(module.register_forward_hook(lambda _, __, output, name=name: written.append((name, output))))
    output = block.forward(hidden)
    for hook in hooks:
        hook.remove()
    given = next(tensor for name, tensor in read if name == path)
    norm = next((name for name, tensor in written if same(tensor, given)), None)
    if norm is None:
        return mixture
    names = [name for name, tensor in read if same(tensor, given)]
    factors = torch.rand(given.shape[-1], generator=torch.Generator().manual_seed(0)).to(hidden.device) + 0.5
    hooks = [modules[norm].register_forward_hook(lambda _, __, found: found * factors)]
    hooks += [modules[name].register_forward_pre_hook(lambda _, inputs: (inputs[0] / factors, *inputs[1:])) for name in names]
    found = block.forward(hidden)
    for hook in hooks:
        hook.remove()
    if not alike(found, output, hidden):
        return mixture
    gates = [name for name in names if name in block.gates]
    return replace(mixture, norm=norm, layers=[name for name in names if name not in (path, *gates)], gates=gates)


def same(tensor: Any, other: Tensor) -> bool:
    """Whether two tensors hold the same tokens, in whatever shape, each times a factor above zero at most: Llama 4's experts read tokens
    times their scores."""
    if not isinstance(tensor, Tensor) or tensor.shape[-1] != other.shape[-1] or tensor.numel() != other.numel():
        return False
    rows, others = (found.reshape(-1, other.shape[-1]) for found in (tensor, other))
    return bool((nn.functional.normalize(rows, dim=-1) - nn.functional.normalize(others, dim=-1)).abs().max() < SAME)


def mixes(block: Block, hidden: Tensor, output: Tensor, layers: list[str]) -> bool:
    """Whether the block's output of other tokens changes with what `layers` make of the first: keys and values do that."""

    def change(_: nn.Module, __: tuple[Tensor, ...], written: Tensor) -> Tensor:
        changed = written.clone()
        changed[:, 0] *= 2
        return changed

    hooks = [block.layer(layer).register_forward_hook(change) for layer in layers]
    found = block.forward(hidden)
    for hook in hooks:
        hook.remove()
    return not alike(found[:, 1:], output[:, 1:], hidden[:, 1:])


def possible_rows(block: Block, writer: str, reader: str) -> Iterator[Rows]:
    """Rows of `writer` that the channels of `reader` could follow, by their numbers.

    All of them; those of one half, where gate and up projection are one layer; the last or first of a layer that makes queries,
    keys and values, with as many queries as the reader has channels.
    """
    outputs, channels = block.layer(writer).out_features, block.layer(reader).in_features
    heads = getattr(block.module.get_submodule(reader.rpartition(".")[0]), "head_dim", 0)
    for count in dict.fromkeys((outputs, channels, (outputs - channels) // 2)):
        if not 0 < count <= outputs or channels % count:
            continue
        width = count if count == channels else heads
        if width and count % width == 0:
            for first in dict.fromkeys((outputs - count, 0)):
                yield Rows(writer, first, count, channels // count, width)


def follows(block: Block, hidden: Tensor, output: Tensor, before: Tensor, readers: list[str], rows: Rows) -> bool:
    """Whether positive factors on the rows reach the input of `readers`, which was `before`, channel by channel, and nothing else.

    Tried, because names would not tell: between an up and a down projection some models have a gate, others an activation; and
    what a norm wrote may be wanted elsewhere too. Divided out again where it is read, nothing of the factors must show in the
    block's output, which was `output`.
    """
    factors = torch.rand(rows.count, generator=torch.Generator().manual_seed(0)).to(hidden.device) + 0.5
    channels = rows.spread(factors)

    def scale(_: nn.Module, __: tuple[Tensor, ...], written: Tensor) -> Tensor:
        scaled = written.clone()
        scaled[..., rows.slice] *= factors
        return scaled

    def read(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        if not alike(inputs[0], before * channels, before):  # the output would tell, too, but later
            raise NotFollowed
        return inputs[0] / channels

    hooks: list[RemovableHandle] = [block.module.get_submodule(rows.writer).register_forward_hook(scale)]
    hooks += [block.layer(reader).register_forward_pre_hook(read) for reader in readers]
    try:
        return alike(block.forward(hidden), output, hidden)
    except NotFollowed:
        return False
    finally:
        for hook in hooks:
            hook.remove()


def alike(found: Tensor, expected: Tensor, start: Tensor) -> bool:
    """Whether two results are the same but for rounding, beside the way from `start` to them."""
    return bool((found - expected).norm() < 1e-3 * (start - expected).norm())
