"""Folding AWQ's channel scales into the operation before a layer, so that the block computes the same function as before.

Two places take them: a norm, for the layers that read its output; and rows of a layer that later layers' inputs follow, which
qlab.walk.block finds by trial: mostly the values of attention for its output projection, and the MLP's up projection for down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from qlab.walk.block import Block
from qlab.walk.statistics import Statistics

Search = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(weights of all readers one above another [out, in], mean |x| [in], mean x² [in]) → scale [in]."""


def fold_scales(block: Block, statistics: dict[str, Statistics], search: Search) -> dict[str, Statistics]:
    """Search and fold a scale wherever the block has a place for one; the statistics of the scaled inputs."""
    scaled = dict(statistics)
    for group in block.groups:
        first = scaled[group.layers[0]]
        if group.norm is not None:
            scale = search(block.stacked(group.layers), first.magnitude, first.mean_square)
            divide_norm(block.module.get_submodule(group.norm), scale)
        elif (rows := group.rows) is not None:
            # Channels that follow one row (query heads that share values) share its scale, whatever the search makes of them.
            alike = (-1, rows.repeats, rows.width)
            shared = rows.spread(first.magnitude.view(alike).mean(1).flatten())
            written = search(block.stacked(group.layers), shared, first.mean_square).view(alike)[:, 0].flatten()
            scale, writer = rows.spread(written), block.layer(rows.writer)
            writer.weight[rows.slice] /= written[:, None]
            if writer.bias is not None:
                writer.bias[rows.slice] /= written
        else:
            continue
        for name in group.layers:
            block.layer(name).weight.mul_(scale)
        seen = replace(
            first,
            hessian=first.hessian / scale / scale[:, None],
            absolute_sum=first.absolute_sum / scale,
            first=[rows / scale for rows in first.first],
        )
        scaled |= dict.fromkeys(group.layers, seen)
    return scaled


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
