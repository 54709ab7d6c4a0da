"""Activations rounded as a checkpoint asks its runtime to: figures are then of what is served, not of its weights alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from qlab.formats.compressed_tensors.scheme import Activations, inputs_of
from qlab.methods.activations import rounded_by_token
from qlab.support.errors import UserError


def round_inputs(model: nn.Module, quantization: dict[str, Any], layers: Iterable[str], called: str) -> None:
    """From now on `model` rounds the inputs of those of its linear `layers`, all stored quantized, whose activations are quantized too.

    Args:
        quantization: the configuration's `quantization_config`.
        called: what errors call the model.

    Raises:
        UserError: in a way that qlab does not know, or of layers that the model does not compute one by one.
    """
    for layer in layers:
        if (asked := inputs_of(layer, quantization)) is None:
            continue
        check_known(asked, called)
        try:
            module: nn.Module | None = model.get_submodule(layer)
        except AttributeError:
            module = None
        if not isinstance(module, nn.Linear):
            raise UserError(
                f"{called} rounds the activations before {layer}, which transformers computes together with other layers: "
                "qlab cannot measure what a runtime serves of it"
            )
        module.register_forward_pre_hook(rounded_before)


def rounded_before(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """A linear layer's inputs, rounded by token."""
    return (rounded_by_token(given[0]), *given[1:])


def check_known(asked: Activations, called: str) -> None:
    """Raise a UserError unless activations are integers of 8 bits, symmetric, with a scale for each token that is found as it goes."""
    if (asked.num_bits, asked.type, asked.symmetric, asked.strategy, asked.dynamic) != (8, "int", True, "token", True):
        raise UserError(
            f"{called} rounds activations as {asked.num_bits}-bit {asked.type[:20]} by {str(asked.strategy)[:20]}"
            f"{'' if asked.dynamic is True else ', with stored scales'}; qlab measures 8-bit integers by token, whose scales are found as "
            "it goes: take the original checkpoint"
        )
