"""Codes that stand for the values of a table, which need not be evenly spaced."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Codebook:
    """`values`: whole numbers in ascending order; a code is the place of one of them."""

    values: tuple[int, ...]

    def nearest_(self, x: Tensor) -> Tensor:
        """Change each number of `x`, contiguous float32 of any shape, to the nearest value; half-way to the larger, as in llama.cpp."""
        return _look_up(x, self, _tables(self, x.device)[0])

    def codes_(self, x: Tensor) -> Tensor:
        """Change each number of `x`, as nearest_ takes it, to the code of the nearest value."""
        return _look_up(x, self, _tables(self, x.device)[1])

    def values_(self, codes: Tensor) -> Tensor:
        """Change codes, contiguous float32 of any shape, to the values that they stand for."""
        return _picked(codes, torch.tensor(self.values, dtype=torch.float32, device=codes.device))


@cache
def _tables(book: Codebook, device: torch.device) -> tuple[Tensor, Tensor]:
    """The nearest value and its code, both float32, for each half step from the smallest value to the largest.

    Between whole numbers the nearest value changes at whole and half numbers only, so that a table of half steps is exact.
    """
    first, last = book.values[0], book.values[-1]
    within = torch.arange(2 * first, 2 * last + 1, dtype=torch.float32) / 2 + 0.25
    borders = torch.tensor([(low + high) / 2 for low, high in pairwise(book.values)])
    codes = torch.bucketize(within, borders)
    values = torch.tensor(book.values, dtype=torch.float32)[codes]
    return values.to(device), codes.float().to(device)


def _look_up(x: Tensor, book: Codebook, table: Tensor) -> Tensor:
    return _picked(x.mul_(2).floor_().sub_(2 * book.values[0]).clamp_(0, len(table) - 1), table)


def _picked(places: Tensor, table: Tensor) -> Tensor:
    """What the table has at `places`, in their memory."""
    torch.index_select(table, 0, places.view(-1).int(), out=places.view(-1))
    return places
