"""Grids chosen by the error of a layer's output instead of by the range of its weights.

Two steps, each with the codes' rounding in view: `search_grid` tries ranges and zero points a group at a time; then, the
codes fixed, `refit_scales` solves for all scales of a row at once, so that the errors of its groups cancel each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from qlab.methods import kernels
from qlab.methods.grid import GroupedIntegers, fit_grid, round_to_grid, rows_at_once, storable
from qlab.support.threads import half_the_threads

KERNEL_ROWS = 256  # that a kernel searches at a time, at least: enough for all its threads
REFIT_ROWS = 512  # rows whose scales are solved for at a time: enough for a matrix product to be worth its name
DEVICE_NUMBERS = 1 << 25  # on a GPU: numbers in a matrix of such rows


@torch.no_grad()
def search_grid(groups: Tensor, bits: int, symmetric: bool, metric: Tensor, steps: int = 16) -> tuple[Tensor, Tensor]:
    """Scale and zero point of least error for each group: [out, groups, group_size] → two [out, groups].

    The error is measured by `metric`: weights of the columns [groups, group_size], or blocks of H [groups, group_size,
    group_size], which know that errors of correlated columns add up. (Clipping errors do, all pointing to zero; AWQ's scale
    search needs no more than weights.) Each trial shrinks the covering range a little, rounds, and
    takes the least-squares scale for the codes so found; about the best of them the zero point is then moved by one.

    A symmetric grid reaches one step further below its zero point than above it. The scale is negative where the longer tail of a
    group is the positive one, so that the further side serves it, as in llama.cpp's Q4_0 and AutoRound; about the best the other
    sign is tried too. Runtimes compute (q − z)·s whatever the sign of s.
    """
    kernel = kernels.found("search_grid", groups.device)
    if kernel and (metric.ndim == 2 or groups.shape[-1] <= kernel.WIDEST):
        options = 2**bits - 1, symmetric, metric, steps, pace(bits, steps)
        split = groups.split(max(KERNEL_ROWS, rows_at_once(groups)))
        found = [kernel.search_grid(part, *options) for part in split]
        return torch.cat([scale for scale, _ in found]), torch.cat([zero for _, zero in found])
    # Groups come first from here on, so that a group's rows are a matrix, ready to be multiplied by its block of H.
    parts = [_search_rows(part.transpose(0, 1).contiguous(), bits, symmetric, metric, steps) for part in groups.split(rows_at_once(groups))]
    return torch.cat([scale.T for scale, _ in parts]), torch.cat([zero.T for _, zero in parts])


@half_the_threads()
def _search_rows(groups: Tensor, bits: int, symmetric: bool, metric: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """`search_grid` for groups [groups, out, group_size]."""

    def weighted(values: Tensor) -> Tensor:
        return metric[:, None] * values if metric.ndim == 2 else values @ metric

    single = groups.dtype == metric.dtype == torch.float32  # what kernels are written for
    trial: Any = (kernels.found("grid_trials", groups.device) if single else None) or Trial
    cover, middle = first_grid(groups, bits, symmetric)
    shorter = pace(bits, steps)
    target, room = weighted(groups), torch.empty_like(groups)
    best = Best(cover.clone(), middle.clone(), torch.full_like(cover, torch.inf), torch.ones_like(cover))

    def attempt(factor: Tensor, zero: Tensor) -> None:
        shrunk = cover * factor
        whole = trial.less_zero(groups, shrunk, zero, bits, room)
        trial.offer(groups, target, whole, weighted(whole), shrunk, zero, factor, best)

    for step in range(steps + 1):
        attempt(torch.full_like(cover, 1 - shorter * step), middle)
    centre = best.factor.clone()
    neighbours = [(-1, middle)] if symmetric else [(1, (middle + shift).clamp_(1, 2**bits - 1)) for shift in (-1, 1)]
    for sign, zero in neighbours:
        for nearby in (-shorter, 0, shorter):
            attempt(sign * (centre + nearby), zero)
    return best.scale, best.zero


class Trial:
    """A trial of grids [...] for groups [..., group_size], without what the metric makes of its codes."""

    @staticmethod
    def less_zero(groups: Tensor, scale: Tensor, zero: Tensor, bits: int, out: Tensor) -> Tensor:
        """Nearest codes on the grids, less their zero points; `out` is room for them."""
        return round_to_grid(groups, scale, zero, bits).sub_(zero[..., None])

    @staticmethod
    def offer(
        groups: Tensor, target: Tensor, whole: Tensor, seen: Tensor, shrunk: Tensor, zero: Tensor, factor: Tensor, best: Best
    ) -> None:  # fmt: skip
        """Put the least-squares scales of the codes `whole` into `best` where they leave less error than those there.

        `target` and `seen`: what the metric makes of the groups, and of the codes, which come from grids of the scale `shrunk`.
        """
        cross, square = (target * whole).sum(-1), (seen * whole).sum(-1)
        scale = storable(torch.where(cross * shrunk.sign() > 0, cross / square.clamp_(min=1e-30), shrunk))
        # The metric is linear: what it makes of the error is had from what it made of the codes.
        seen.mul_(scale[..., None]).sub_(target)
        best.offer(scale, zero, whole.mul_(scale[..., None]).sub_(groups).mul_(seen).sum(-1), factor)


def first_grid(groups: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """The covering grids [...] of groups [..., group_size]; symmetric ones with the sign that serves the longer tail."""
    cover, middle = fit_grid(groups, bits, symmetric)
    return torch.where(groups.amax(-1) > -groups.amin(-1), -cover, cover) if symmetric else cover, middle


def pace(bits: int, steps: int) -> float:
    """By what part of the covering range each of `steps` trials shrinks it further: the fewer levels, the more clipping pays."""
    narrowest = {2: 0.4, 3: 0.6}.get(bits, 0.75)
    return (1 - narrowest) / steps


@dataclass
class Best:
    """The best grids so far, the error each leaves, and the factor of the covering range that led there."""

    scale: Tensor
    zero: Tensor
    error: Tensor
    factor: Tensor

    def offer(self, scale: Tensor, zero: Tensor, error: Tensor, factor: Tensor) -> None:
        """Take the grids that leave less error."""
        better = error < self.error
        self.scale, self.zero = torch.where(better, scale, self.scale), torch.where(better, zero, self.zero)
        self.error, self.factor = torch.where(better, error, self.error), torch.where(better, factor, self.factor)


def diagonal_blocks(hessian: Tensor, size: int) -> Tensor:
    """The blocks on the diagonal of H [in, in], one a group: [groups, size, size]."""
    return torch.stack([hessian[first : first + size, first : first + size] for first in range(0, len(hessian), size)])


def refit_scales(
    layer: GroupedIntegers, weight: Tensor, hessian: Tensor, bottoms: Tensor | None = None, damping: float = 0.01
) -> GroupedIntegers:
    """The same codes with the scales of least output error: least squares in the metric of the whole H [in, in].

    A row is w ≈ Σ_g s_g·c_g with c_g = (q − z) of group g and zero elsewhere; trace(E·H·Eᵀ) is quadratic in its scales, so
    the best solve A·s = b with A_gh = c_gᵀ·H·c_h, b_g = c_gᵀ·H·w. Where the inputs of different groups are correlated, the
    groups' errors then cancel. `damping` holds each scale to what it was, in parts of A_gg. A row that would not gain keeps
    its scales. Consecutive groups only.

    `bottoms` float32 [out, in], if known: where each weight alone would be best while the others stand (qlab.methods.settle). They stand
    in for the product of W and H.
    """
    rows, columns = layer.codes.shape
    groups = layer.scales.shape[1]
    at_once, equations = REFIT_ROWS, normal_matrix
    if kernels.run_on(weight.device):
        from qlab.methods.kernels.gpu import refit

        at_once, equations = max(1, DEVICE_NUMBERS // max(columns, groups**2)), refit.normal_matrix
    scales = []
    for first in range(0, rows, at_once):
        here = slice(first, first + at_once)
        whole, old = layer.codes[here].float().view(-1, groups, columns // groups) - layer.zeros[here, :, None], layer.scales[here]  # c_g
        matrix = equations(whole, hessian)
        if bottoms is None:
            wanted = ((weight[here].float() @ hessian).view(whole.shape) * whole).sum(-1)  # b
        else:  # b − A·s = c_gᵀ·H·(w − ŵ), which is how far each weight is from its bottom, times its curvature
            away = bottoms[here].reshape(whole.shape).sub(whole * old[..., None]).mul_(hessian.diagonal().view(groups, -1))
            wanted = (matrix @ old[..., None])[..., 0] + away.mul_(whole).sum(-1)
        scales.append(_best_scales(matrix, wanted, old, damping))
    return replace(layer, scales=torch.cat(scales))


def normal_matrix(whole: Tensor, hessian: Tensor) -> Tensor:
    """A float32 [out, groups, groups] of `whole` float32 [out, groups, size], codes less their zero points."""
    rows, groups, size = whole.shape
    matrix = torch.empty(rows, groups, groups, device=whole.device)
    for group in range(groups):  # A is symmetric
        seen = whole[:, group] @ hessian[group * size : (group + 1) * size, group * size :]
        matrix[:, group, group:] = matrix[:, group:, group] = (seen.view(rows, groups - group, size) * whole[:, group:]).sum(-1)
    return matrix


def _best_scales(matrix: Tensor, wanted: Tensor, scales: Tensor, damping: float) -> Tensor:
    """The solution of A `matrix` [out, groups, groups] and b `wanted` [out, groups], held to `scales` [out, groups], as it is stored."""
    pull = damping * matrix.diagonal(dim1=1, dim2=2) + 1e-20
    found = torch.linalg.solve(matrix + torch.diag_embed(pull), wanted + pull * scales)
    # Far from where it was, a scale has left the range that its codes were rounded for.
    size, before = found * scales.sign(), scales.abs()
    found = storable(torch.where((size > 0.5 * before) & (size < 2 * before), found, scales))

    def cost(candidate: Tensor) -> Tensor:
        return (candidate * ((matrix @ candidate[..., None])[..., 0] - 2 * wanted)).sum(-1, keepdim=True)

    return torch.where(cost(found) < cost(scales), found, scales)
