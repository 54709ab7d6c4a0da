"""A block whose layers are rounded each for itself, by recipes that need no calibration text."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from qlab.models.opening import OpenedModel
from qlab.recipes.recipe import WalkedRecipe
from qlab.walk.block import Block
from qlab.walk.walk import Quantized

Encode = Callable[[str, Tensor], tuple[dict[str, Tensor], Tensor]]
"""(a layer's name, its weight float32 [out, in]) → its stored tensors, by what stands behind its name, and the weights float32 [out, in]
that they stand for."""


def quantize_each(recipe: WalkedRecipe, source: OpenedModel, block: Block, encode: Encode, left: Mapping[str, str]) -> Quantized:
    """The block with each layer encoded, but for those `left` in half precision, each with the reason. Errors are of weights: nothing is
    known of what the layers read."""
    found = Quantized({}, notes={name: f"in half precision, since {reason}" for name, reason in left.items()})
    layers = set(block.layers) - set(left)
    for name, tensor in block.module.state_dict().items():
        layer = name.removesuffix(".weight")
        if layer not in layers:
            found.stored |= recipe.keep(source, block.prefix + name, tensor)
            continue
        stored, approximation = encode(block.prefix + name, tensor)
        found.stored |= {f"{block.prefix}{layer}.{kind}": part for kind, part in stored.items()}
        found.errors[layer] = float((approximation - tensor).square().sum() / tensor.square().sum().clamp(min=1e-30))
    return found
