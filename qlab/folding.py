"""Folding AWQ's channel scales into the operation before a layer, so that the block computes the same function as before.

Three places take them: a norm into the layers that read its output; the value projection into the output projection (what
attention mixes are rows of v); the MLP's up projection into down (gated MLPs are linear in it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from qlab.block import Block
from qlab.statistics import Statistics

Search = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(weights of all readers one above another [out, in], mean |x| [in], mean x² [in]) → scale [in]."""

PAIRS = (("v_proj", "o_proj"), ("up_proj", "down_proj"))


def fold_scales(block: Block, statistics: dict[str, Statistics], search: Search) -> dict[str, Statistics]:
    """Search and fold a scale wherever the block has a place for one; the statistics of the scaled inputs."""
    scaled = dict(statistics)
    for group in block.groups:
        first = scaled[group.layers[0]]
        if group.norm is not None:
            scale = search(torch.cat([block.layer(name).weight for name in group.layers]), first.magnitude, first.mean_square)
            divide_norm(block.module.get_submodule(group.norm), scale)
        elif (pair := pair_of(block, group.layers)) is not None:
            writer, repeats, width = pair
            # Query heads that share a value head share its scale: repeats of each are consecutive.
            shared = first.magnitude.view(-1, repeats, width).mean(1, keepdim=True).expand(-1, repeats, -1).flatten()
            scale = search(block.layer(group.layers[0]).weight, shared, first.mean_square)
            written = scale.view(-1, repeats, width)[:, 0].flatten()
            writer.weight.div_(written[:, None])
            if writer.bias is not None:
                writer.bias.div_(written)
        else:
            continue
        for name in group.layers:
            block.layer(name).weight.mul_(scale)
        seen = replace(first, hessian=first.hessian / scale / scale[:, None], absolute_sum=first.absolute_sum / scale)
        scaled |= dict.fromkeys(group.layers, seen)
    return scaled


def pair_of(block: Block, readers: list[str]) -> tuple[nn.Linear, int, int] | None:
    """The layer whose output the only reader reads channel by channel, how often each head of it is repeated, and a head's width."""
    for wrote, read in PAIRS:
        if len(readers) == 1 and readers[0].rpartition(".")[2] == read:
            parent, _, _ = readers[0].rpartition(".")
            names = dict(block.module.named_modules())
            writer = names.get(f"{parent}.{wrote}")
            inputs = block.layer(readers[0]).in_features
            if isinstance(writer, nn.Linear) and inputs % writer.out_features == 0:
                repeats = inputs // writer.out_features
                return writer, repeats, writer.out_features if repeats == 1 else names[parent].head_dim
    return None


def divide_norm(norm: nn.Module, scale: Tensor) -> None:
    """Divide what the norm writes by `scale` [hidden], in its weight and bias. Gemma's norms multiply by 1 + weight."""
    weight, bias = norm.get_parameter("weight"), getattr(norm, "bias", None)
    if bias is not None:
        bias.div_(scale)
    kept = weight.clone()
    weight.zero_()
    silent = norm(torch.arange(1.0, len(weight) + 1, device=weight.device)) - (0 if bias is None else bias)
    offset = 1.0 if silent.abs().max() > 0 else 0.0
    weight.copy_((kept + offset) / scale - offset)
