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
from qlab.walk.routing import Routing
from qlab.walk.statistics import Statistics

ROWS = 16384  # of all layers together that a scale before experts is searched on

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
        scaled |= dict.fromkeys(group.layers, divided(first, scale))
    return scaled


def fold_before_experts(block: Block, path: str, routing: Routing, search: Search) -> Tensor | None:
    """Search a scale of what the experts of the list `path` read and fold it into the norm that wrote it, the experts, and all others that
    read it; the scale [width], None where there is no place for one. It is searched on evenly spaced rows of all these layers.

    The router's weights take the scale like all others: who is chosen stays the same, but for rounding.
    """
    mixture = block.experts[path]
    if mixture.norm is None:
        return None
    readers = [block.layer(name).weight for name in mixture.layers]
    for expert in block.parts():
        if expert.place and expert.place[0] == path:
            readers += [expert.layer(name).weight for name in mixture.groups[0].layers]
    step = max(1, sum(map(len, readers)) // ROWS)
    scale = search(torch.cat([weight[::step] for weight in readers]), routing.magnitude, routing.mean_square)
    divide_norm(block.module.get_submodule(mixture.norm), scale)
    for weight in [*readers, *(block.module.get_submodule(gate).get_parameter("weight") for gate in mixture.gates)]:
        weight.mul_(scale)
    return scale


def divided(seen: Statistics, scale: Tensor) -> Statistics:
    """The statistics of inputs that are divided by `scale` [in]."""
    return replace(
        seen,
        hessian=seen.hessian / scale / scale[:, None],
        absolute_sum=seen.absolute_sum / scale,
        first=[rows / scale for rows in seen.first],
        largest=seen.largest.to(scale.device) / scale,
    )


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
