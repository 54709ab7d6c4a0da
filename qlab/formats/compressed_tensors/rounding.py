"""Activations rounded as a checkpoint asks its runtime to: figures are then of what is served, not of its weights alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn

from qlab.formats.compressed_tensors.scheme import Activations, inputs_of
from qlab.methods.activations import rounded_by_scale, rounded_by_token
from qlab.methods.fp8 import floats_by_scale, rounded_floats
from qlab.support.errors import UserError

BY_SCALE = {"int": rounded_by_scale, "float": floats_by_scale}
Rounding = Callable[[Tensor], Tensor]
Stored = Callable[[str], Tensor | None]
"""layer → the one scale of its inputs that the checkpoint holds; None where it holds none."""


def round_inputs(
    model: nn.Module, quantization: dict[str, Any], layers: Iterable[str], called: str, scale_of: Stored = lambda _: None
) -> None:
    """From now on `model` rounds the inputs of those of its linear `layers`, all stored quantized, whose activations are quantized too.

    Args:
        quantization: the configuration's `quantization_config`.
        called: what errors call the model.
        scale_of: what the checkpoint holds of a layer's inputs, where their scales are not found as it goes.

    Raises:
        UserError: in a way that qlab does not know, by a scale that is not there, or of layers that the model does not compute one by one.
    """
    for layer in layers:
        if (asked := inputs_of(layer, quantization)) is None:
            continue
        rounding = rounding_of(asked, called, scale_of(layer))
        try:
            module: nn.Module | None = model.get_submodule(layer)
        except AttributeError:
            module = None
        if not isinstance(module, nn.Linear):
            raise UserError(
                f"{called} rounds the activations before {layer}, which transformers computes together with other layers: "
                "qlab cannot measure what a runtime serves of it"
            )
        module.register_forward_pre_hook(partial(rounded_before, rounding))


def rounded_before(rounding: Rounding, _: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """A linear layer's inputs, rounded."""
    return (rounding(given[0]), *given[1:])


def rounding_of(asked: Activations, called: str, scale: Tensor | None = None) -> Rounding:
    """How activations are rounded: to 8 bits, symmetric, with scales that are found as it goes: integers or floats by token, or floats by
    groups of a token's channels; or by one stored `scale`.

    Raises:
        UserError: in another way.
    """
    if (asked.num_bits, asked.symmetric, asked.dynamic) == (8, True, True):
        match asked.type, asked.strategy, asked.group_size:
            case "int", "token", _:
                return rounded_by_token
            case "float", "token", _:
                return rounded_floats
            case "float", "group", int(size):
                return partial(rounded_floats, group_size=size)
    if (asked.num_bits, asked.symmetric, asked.dynamic, asked.strategy) == (8, True, False, "tensor") and asked.type in BY_SCALE:
        if scale is None:
            raise UserError(f"{called} rounds activations by scales that its files lack (input_scale): fetch it again")
        return partial(BY_SCALE[asked.type], scale=scale)
    raise UserError(
        f"{called} rounds activations as {asked.num_bits}-bit {asked.type[:20]} by {str(asked.strategy)[:20]}"
        f"{'' if asked.dynamic is True else ', with stored scales'}; qlab measures integers and floats of 8 bits by token, and floats by "
        "groups of channels, whose scales are found as it goes, and both by one stored scale: take the original checkpoint"
    )
