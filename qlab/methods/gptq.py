"""GPTQ (Frantar et al. 2022): round the input columns one after another, each error spread over the columns still to come.

The least-squares answer to "column j was rounded, what should the others do?" needs the inverse Hessian of the layer's
inputs only; its Cholesky factor holds, row by row, what each step of that elimination needs (the paper's algorithm 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qlab.methods import kernels
from qlab.methods.grid import GroupedIntegers, fit_grid, grouped
from qlab.methods.grid_search import search_grid
from qlab.methods.hessian import damp, shrink
from qlab.methods.rtn import rtn
from qlab.methods.settle import settle
from qlab.support.errors import UserError
from qlab.support.stages import stage
from qlab.support.threads import half_the_threads

BLOCK = 64  # B: columns whose updates reach the rest of the matrix together (section 3.3, step 2, with 128 there; the same result)
DAMPINGS = 4  # the damping is raised tenfold this many times before GPTQ gives up on a Hessian
ORDERS = ("given", "static", "group", "scattered")


def gptq(
    weight: Tensor,
    hessian: Tensor,
    bits: int,
    group_size: int = 128,
    symmetric: bool = False,
    order: str = "given",
    search: bool = False,
    damping: float = 0.01,
    trust: float = 1.0,
    compensate: bool = True,
) -> GroupedIntegers:
    """Quantize `weight` [out, in] against H = XᵀX `hessian` [in, in].

    `order` of the columns: "given"; "static", by falling diagonal of H on grids fixed beforehand from the original groups;
    "group", groups by falling importance and the columns within each likewise, so that a grid is still fitted to what its
    group has become (GPTQModel calls it group-aware); "scattered", by falling diagonal with groups of whatever columns
    follow each other, which needs a g_idx (AutoGPTQ's desc_act). All but the last cost nothing at inference.

    `search` looks for each grid in the metric that GPTQ itself minimises, instead of covering its group, and when all codes are
    there goes over them again and fits the scales to them (qlab.methods.settle), but for scattered groups.
    `trust`: what share of H's correlations to believe, the paper's all or that of qlab.methods.hessian.trust.
    `compensate=False` is the negative control: the same walk, errors thrown away.
    A Hessian that cannot be factored at any damping falls back to RTN, and the result's `note` says so.

    Raises:
        UserError: an unknown order, or a group size that does not divide the row.
    """
    return compensated(weight, hessian, bits, group_size, symmetric, order, search, damping, trust, compensate)[0]


@torch.no_grad()
def compensated(
    weight: Tensor, hessian: Tensor, bits: int, group_size: int, symmetric: bool, order: str, search: bool,
    damping: float = 0.01, trust: float = 1.0, compensate: bool = True,
) -> tuple[GroupedIntegers, Tensor]:  # fmt: skip
    """As `gptq`, and the weights float32 [out, in] as they stood, errors of others spread over them, when they were rounded."""
    if order not in ORDERS:
        raise UserError(f"no column order {order!r}: expected one of {', '.join(ORDERS)}")
    columns = weight.shape[1]
    size = columns if group_size == -1 else group_size
    grouped(weight, group_size)  # raises where the group size does not divide
    weight = weight.float()
    dead = hessian.diagonal() == 0
    if dead.any():  # channels that no token ever used: any code serves, zero is cheapest
        weight = weight.masked_fill(dead, 0)
    places = column_order(hessian.diagonal(), size, order)
    with stage("factor"):
        factor, note = inverse_factor(hessian, places, damping, trust)
    if factor is None:
        return rtn(weight, bits, group_size, symmetric, note=note), weight
    with stage("round"):
        layer, rounded = one_pass(weight, factor, places, bits, size, symmetric, order, search, compensate, note)
    if not search or not compensate or order == "scattered" or note:  # a Hessian that took more damping is not to be trusted further
        return layer, rounded
    del factor, rounded
    with stage("settle"):
        return settle(layer, weight, damp(shrink(hessian.float().clone(), trust), damping))


@dataclass(frozen=True)
class Pass:
    """What the walk over the columns reads and fills. A column of W is a row here, which is contiguous memory.

    Filled: `work` float32 [in, out], the columns in the order of the walk, which become what they are when they are rounded; `codes`
    uint8 [in, out]; `scale`, `zero` float32 [groups, out]. Read: U `factor` float32 [in, in]; `importance` float32 [in], what an error of
    each column costs; `group_of` int64 [in], the group of each. `fixed`: the grids are there beforehand.
    """

    work: Tensor
    codes: Tensor
    scale: Tensor
    zero: Tensor
    factor: Tensor
    importance: Tensor
    group_of: Tensor
    bits: int
    size: int
    symmetric: bool
    search: bool
    fixed: bool
    compensate: bool

    def grids(self, members: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and zero points [out, groups] of groups [out, groups, size], whose errors cost `importance` [groups, size]."""
        if self.search:
            return search_grid(members, self.bits, self.symmetric, importance)
        return fit_grid(members, self.bits, self.symmetric)


def one_pass(
    weight: Tensor, factor: Tensor, places: Tensor, bits: int, size: int, symmetric: bool, order: str, search: bool,
    compensate: bool, note: str,
) -> tuple[GroupedIntegers, Tensor]:  # fmt: skip
    """The columns one after another, in the order `places`, with U `factor`; and the weights as they stood when they were rounded."""
    columns = weight.shape[1]
    importance = factor.diagonal().pow(-2)  # column j costs error² / U_jj² (the paper's equation 2)
    work = weight.T[places].contiguous()
    codes = torch.empty_like(work, dtype=torch.uint8)
    scale, zero = (torch.empty(columns // size, weight.shape[0], device=weight.device) for _ in range(2))
    natural = order in ("static", "group")  # groups are those of the original columns
    group_of = places // size if natural else torch.arange(columns, device=weight.device) // size
    fixed = order == "static" or not compensate
    walk = Pass(work, codes, scale, zero, factor, importance, group_of, bits, size, symmetric, search, fixed, compensate)
    if fixed:
        source, weights = (weight, importance[torch.argsort(places)]) if natural else (work.T, importance)
        scale[:], zero[:] = (part.T for part in walk.grids(grouped(source, size), weights.view(-1, size)))
    round_block, width = round_columns, BLOCK
    kernel = kernels.found("round_columns", weight.device)
    if kernel and (columns_at_once := kernels.width(columns if fixed else size, kernel.WIDEST)) >= kernel.NARROWEST:
        round_block, width = kernel.round_columns, columns_at_once
    with kernels.quick_products(weight.device):
        for first in range(0, columns, width):
            here = slice(first, min(first + width, columns))
            errors = round_block(walk, here)
            if compensate and here.stop < columns:
                work[here.stop :].addmm_(factor[here, here.stop :].T, errors, alpha=-1)
    back = torch.argsort(places)
    quantized = GroupedIntegers(
        codes[back].T.contiguous(), scale.T.contiguous(), zero.T.to(torch.int16).contiguous(), bits,
        group_of[back] if order == "scattered" else None, note,
    )  # fmt: skip
    return quantized, work[back].T


@half_the_threads()
def round_columns(walk: Pass, here: slice) -> Tensor:
    """Round the columns `here` one after another, each with the errors of those before it; return their errors [len(here), out]."""
    work, factor, size = walk.work, walk.factor, walk.size
    first = here.start
    errors = torch.zeros_like(work[here])  # zeros: of columns still to come
    near = factor[here, here].T.contiguous()  # row j: what the errors before it do to column j
    names, pivots = walk.group_of[here].tolist(), factor.diagonal()[here].tolist()
    columns = zip(range(first, here.stop), names, pivots, work[here], near, errors, walk.codes[here])
    for j, group, pivot, column, spread, error, code in columns:
        if not walk.fixed and j % size == 0:  # the grid of a group sees the errors spread so far, in this block too
            end = j + size
            members = (work[j:end] - factor[first:j, j:end].T @ errors[: j - first]).T.unsqueeze(1)
            walk.scale[group], walk.zero[group] = (part[:, 0] for part in walk.grids(members, walk.importance[j:end][None]))
        step, middle = walk.scale[group], walk.zero[group]
        if walk.compensate:
            column.addmv_(errors.T, spread, alpha=-1)
        rounded = torch.div(column, step).round_().add_(middle).clamp_(0, 2**walk.bits - 1)
        code.copy_(rounded)
        if walk.compensate:
            torch.addcmul(column, rounded.sub_(middle), step, value=-1, out=error).div_(pivot)
    return errors


def column_order(diagonal: Tensor, size: int, order: str) -> Tensor:
    """The column at each place of the walk, int64 [in], from the diagonal of H."""
    columns = len(diagonal)
    if order == "given":
        return torch.arange(columns, device=diagonal.device)
    if order in ("static", "scattered"):
        return torch.argsort(diagonal, descending=True, stable=True)
    groups = diagonal.view(-1, size)
    leading = torch.argsort(groups.amax(-1), descending=True, stable=True)
    within = torch.argsort(groups[leading], dim=-1, descending=True, stable=True)
    return (leading[:, None] * size + within).flatten()


def inverse_factor(hessian: Tensor, places: Tensor, damping: float, trust: float = 1.0) -> tuple[Tensor | None, str]:
    """U, the upper Cholesky factor of H⁻¹ with rows and columns in the order `places`, and a note.

    Row j of U holds what eliminating column j does to the later ones. It is had without H⁻¹: factored from its last row
    upwards, H = R·Rᵀ with R upper triangular, so that H⁻¹ = R⁻ᵀ·R⁻¹ and U = R⁻¹. H is shrunk by `trust`, then
    λ = `damping` · mean diagonal is added (section 3.3, step 3), tenfold more wherever H is still not positive definite. None, with a
    note, where nothing helped.
    """
    backwards = places.flip(0)
    for attempt in range(DAMPINGS):
        raised = damping * 10**attempt
        matrix = hessian.float()[backwards][:, backwards]  # gathered anew each time: a matrix kept for later is memory lost now
        matrix, failed = torch.linalg.cholesky_ex(damp(shrink(matrix, trust), raised))
        if failed or not torch.isfinite(matrix.diagonal()).all():
            continue
        matrix = inverted(matrix)
        matrix = matrix.flip(0, 1)  # a step at a time: each is a matrix of its own, and the one before is free again
        matrix = matrix.contiguous()
        if torch.isfinite(matrix).all():
            return matrix, "" if attempt == 0 else f"damping raised to {raised:g}"
    return None, f"RTN instead of GPTQ: the Hessian cannot be factored even with damping {raised:g}"


def inverted(lower: Tensor) -> Tensor:
    """The inverse of a lower triangular matrix, which is overwritten where Triton's kernels run: by halves then, most of it products."""
    size = len(lower)
    if not kernels.run_on(lower.device) or size <= kernels.TRIANGLE:
        identity = torch.eye(size, device=lower.device)
        return torch.linalg.solve_triangular(lower, identity, upper=False, out=identity)
    half = size // 2
    first, below, second = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    for part in (first, second):
        part.copy_(inverted(part))
    below.copy_((second @ below).neg_() @ first)
    return lower
