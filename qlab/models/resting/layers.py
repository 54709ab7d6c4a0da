"""Layers whose weights rest as they are stored, most in half precision, and are FP32, or BF16 where layers multiply in it, for as long as
somebody computes with them.

Every number of BF16 or FP16 is one of FP32, so a model at rest computes what the whole model in FP32 does, to the bit. Its matrices take
half the memory, and lie on the device or, where even that is too much, in the machine's memory, from where they come one at a time. What
is no matrix (norms, biases, convolutions) is small and stays FP32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qlab.support.memory import pinned

MARK = "computes_in"  # a parameter of no numbers that a model at rest has first of all: FP32, and on the device


class Resting:
    """What a layer at rest has beside its own class: its parameter `weight` as stored, and a `weight` in FP32 for who asks.

    `computes_on`: the device that this is made on, anew each time. `instead`, where it is set, says what stands in its place: FP32 weight
    [out, in] → another. It is asked each time, so it must give the same whenever it is given the same.
    """

    _parameters: dict[str, Any]
    computes_on: torch.device
    instead: Callable[[Tensor], Tensor] | None

    @property
    def weight(self) -> Tensor:
        """float32 [out, in]. It asks for a gradient where the stored one does: PyTorch multiplies a row in another way by one that does."""
        return self.weight_as(torch.float32)

    def weight_as(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in] made in `dtype` at once: BF16 made of FP16 has the bits that it has by way of FP32. It is the stored tensor
        itself where that has this dtype and lies on the device.

        Raises:
            RuntimeError: `instead` asks for what is not there.
        """
        stored = self._parameters["weight"]
        found = self.widened(stored.data, dtype if self.instead is None else torch.float32)
        if self.instead is not None:
            try:
                with torch.no_grad():
                    found = self.instead(found).to(self.computes_on, torch.float32).to(dtype)
            except AttributeError as error:  # PyTorch would take it for this property's own, and give what is stored
                raise RuntimeError(str(error)) from error
        return nn.Parameter(found, requires_grad=stored.requires_grad)

    def widened(self, stored: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Some of its weights, on the device, as FP32 or as `dtype`."""
        return stored.to(self.computes_on, non_blocking=True).to(dtype)


class _Product(torch.autograd.Function):
    """A linear layer without gradients of its own, whose weight is made once more on the way back: kept, it would stay until then.

    Where autocast multiplies in BF16, the weight is made in BF16: an FP32 copy beside it would be twice as large.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        kind = inputs.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        return functional.linear(inputs, layer.weight_as(dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.weight_as(gradient.dtype), None


class RestingLinear(nn.Linear):
    """The product of a linear layer at rest."""

    def forward(self, input: Tensor) -> Tensor:
        """Activations [..., in] → [..., out]."""
        return _Product.apply(input, self) if torch.is_grad_enabled() and input.requires_grad else super().forward(input)


class RestingEmbedding(nn.Embedding):
    """The rows of an embedding at rest."""

    def forward(self, input: Tensor) -> Tensor:
        """Tokens int64 [...] → [..., width]. Only the rows that occur become FP32, unless the class asks for its `weight`, as Gemma's do to
        learn its dtype."""
        layer: Any = self
        stored = layer._parameters["weight"].data
        used, numbered = torch.unique(input, return_inverse=True)
        return functional.embedding(numbered, layer.widened(stored[used.to(stored.device)]))


@cache
def class_at_rest(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a layer of class `kind` once it is at rest. What `kind` adds to a plain layer stays: Gemma's embeddings have a scale."""
    plain: tuple[type[nn.Module], type[nn.Module]] = (
        (nn.Linear, RestingLinear) if issubclass(kind, nn.Linear) else (nn.Embedding, RestingEmbedding)
    )
    between = (plain[1],) if kind is plain[0] else (kind, plain[1])  # what `kind` calls by super() is the resting layer
    return type(kind.__name__, (Resting, *between), {})


def rest(model: nn.Module, stored: Mapping[str, torch.dtype], device: str) -> None:
    """Lay a model down that is on the meta device, tied where it is to be: each matrix of a linear layer or an embedding keeps the dtype in
    which it is `stored`, by its parameter's name. It will compute on `device`; `materialize` gives it memory."""
    held_elsewhere = {id(tensor) for module in model.modules() if not can_rest(module) for tensor in module._parameters.values()}
    resting = {
        id(tensor): nn.Parameter(torch.empty_like(tensor, dtype=stored[name]), requires_grad=tensor.requires_grad)
        for name, tensor in model.named_parameters()
        if name in stored and id(tensor) not in held_elsewhere
    }
    for module in model.modules():
        found: Any = module
        if can_rest(module) and (weight := resting.get(id(module._parameters["weight"]))) is not None:
            kind: Any = type(module)
            found.__class__ = class_at_rest(kind)
            found._parameters["weight"], found.computes_on, found.instead = weight, torch.device(device), None
    model.tie_weights = already_tied  # type: ignore[assignment]
    own: dict[str, Any] = model._parameters
    model._parameters = {MARK: nn.Parameter(torch.empty(0, device="meta"), requires_grad=False)} | own


def already_tied(*_: Any, **__: Any) -> None:
    """In place of a model's tie_weights, which lm-eval calls and which would tie what a layer at rest gives to the other."""


def can_rest(module: nn.Module) -> bool:
    """Whether a module's weight may rest."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Embedding) and module.max_norm is None)


@torch.no_grad()
def materialize(model: nn.Module, device: str, in_memory: bool) -> None:
    """Give every tensor of a model at rest memory on `device`, or its linear layers `in_memory` of the machine; tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, tensor in module._parameters.items():
            if tensor is None:
                continue
            if id(tensor) not in made:
                apart = in_memory and isinstance(module, Resting) and isinstance(module, nn.Linear)
                made[id(tensor)] = nn.Parameter(empty(tensor, device, apart), requires_grad=tensor.requires_grad)
            module._parameters[name] = made[id(tensor)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=device)


def empty(tensor: Tensor, device: str, apart: bool) -> Tensor:
    """Memory for a tensor, on `device` or `apart` from it, from where a GPU reads it by itself."""
    if not apart:
        return torch.empty_like(tensor, device=device)
    if torch.device(device).type == "cuda":
        return pinned(tensor.shape, tensor.dtype, device)
    return torch.empty_like(tensor, device="cpu")


def at_rest(model: nn.Module) -> bool:
    """Whether a model's matrices are at rest."""
    return MARK in model._parameters


def device_of(layer: nn.Module) -> torch.device:
    """What a layer computes on, wherever its weight rests."""
    return layer.computes_on if isinstance(layer, Resting) else next(layer.parameters()).device


@contextmanager
def standing_in(layer: nn.Module, weight: Tensor) -> Iterator[None]:
    """Within the context `weight` [out, in] is in the place of a linear layer's own, in the same precision."""
    if isinstance(layer, Resting):
        before, layer.instead = layer.instead, lambda _: weight
        try:
            yield
        finally:
            layer.instead = before
        return
    parameter = layer.get_parameter("weight")
    exact, parameter.data = parameter.data, weight.to(parameter.dtype)
    try:
        yield
    finally:
        parameter.data = exact


@contextmanager
def set_aside(model: nn.Module) -> Iterator[None]:
    """Within the context, in which it cannot compute, a model at rest on a GPU lies in the machine's memory: others have its room."""
    resting: list[Any] = [module._parameters["weight"] for module in model.modules() if isinstance(module, Resting)]
    on_gpu = {id(found): found for found in resting if found.device.type == "cuda"}
    places = {number: found.device for number, found in on_gpu.items()}
    try:
        for found in on_gpu.values():
            found.data = found.data.to("cpu")
        if on_gpu:
            torch.cuda.empty_cache()  # a process keeps what it has freed
        yield
    finally:
        for number, found in on_gpu.items():
            found.data = found.data.to(places[number])
