"""Lesson 3: GPTQ on a matrix that is small enough to be seen whole, column by column."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from qlab.methods.awq import output_error
from qlab.methods.gptq import compensated, inverse_factor
from qlab.methods.rtn import rtn

DAMPING = 0.01  # the guide's


@dataclass(frozen=True)
class Columns:
    """GPTQ's walk over `weight` float32 [out, in], one grid a row.

    From `compensated` of qlab/methods/gptq.py: `stood` float32 [out, in], each column as it stood when its turn came, `codes` uint8
    [out, in] and `rounded` float32 [out, in], what they stand for. `plain` float32 [out, in] is what RTN makes of the same weights on the
    same grid. `factor` is U float32 [in, in], the upper Cholesky factor of H⁻¹, and `hessian` H float32 [in, in]. Columns count from 0.
    """

    weight: Tensor
    stood: Tensor
    codes: Tensor
    rounded: Tensor
    plain: Tensor
    factor: Tensor
    hessian: Tensor

    @property
    def count(self) -> int:
        return self.weight.shape[1]

    def error(self, column: int) -> Tensor:
        """What rounding took from a column, float32 [out]."""
        return self.stood[:, column] - self.rounded[:, column]

    def updates(self, column: int) -> Tensor:
        """What the error of a column adds to each column after it: −error / U_jj · U_jk, float32 [out, in]; zero elsewhere."""
        spread = self.factor[column].clone()
        spread[: column + 1] = 0
        return -torch.outer(self.error(column) / self.factor[column, column], spread)

    def standing(self, column: int) -> Tensor:
        """The weights once a column is done: rounded up to it, and behind it with all updates so far; float32 [out, in]."""
        weight = self.weight + sum(self.updates(done) for done in range(column + 1))
        weight[:, : column + 1] = self.rounded[:, : column + 1]
        return weight

    @cached_property
    def output_errors(self) -> list[tuple[float, float]]:
        """Relative squared output error once each column is done: as GPTQ has it, and with the same columns plainly rounded."""
        errors = []
        for done in range(1, self.count + 1):
            plain = torch.cat([self.plain[:, :done], self.weight[:, done:]], dim=1)
            with_it, without = (output_error(found, self.weight, self.hessian) for found in (self.standing(done - 1), plain))
            errors.append((with_it, without))
        return errors


def column_by_column(weight: Tensor, hessian: Tensor, bits: int) -> Columns:
    """GPTQ of `weight` [out, in] against H = XᵀX `hessian` [in, in], the columns in their order, each row with one grid."""
    weight, hessian = weight.float(), hessian.float()
    layer, stood = compensated(weight, hessian, bits, -1, False, "given", False, DAMPING)
    factor, _ = inverse_factor(hessian, torch.arange(len(hessian)), DAMPING)
    assert factor is not None  # only an H that is not finite has none
    return Columns(weight, stood, layer.codes, layer.dequantize(), rtn(weight, bits, -1).dequantize(), factor, hessian)


def small_matrix(weight: Tensor, hessian: Tensor, rows: int = 12, columns: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """A piece of a layer: weights float32 [rows, columns], their H float32 [columns, columns], and which input channels they are, int64.

    The channel whose inputs are most correlated with all others, and those most correlated with it, in their order; the first rows.
    """
    hessian = hessian.float().cpu()
    size = hessian.diagonal().clamp(min=1e-30).sqrt()
    correlation = (hessian / torch.outer(size, size)).square().masked_fill(hessian.diagonal() == 0, 0)
    leading = correlation[correlation.sum(1).argmax()]
    chosen = leading.topk(min(columns, len(leading))).indices.sort().values
    return weight[:rows, chosen.to(weight.device)].float().cpu(), hessian[chosen][:, chosen], chosen
