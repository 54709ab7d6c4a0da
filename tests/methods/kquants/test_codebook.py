"""Codes of a codebook: the nearest of its values, found by a table."""

from __future__ import annotations

import torch

from qlab.methods.kquants.codebook import Codebook
from qlab.methods.kquants.kinds import IQ4


def test_the_nearest_value_is_found_everywhere() -> None:
    for book in (IQ4, Codebook((-3, 0, 1, 8))):
        values = torch.tensor(book.values, dtype=torch.float32)
        halves = (values[1:] + values[:-1]) / 2
        x = torch.cat([torch.linspace(-200, 200, 40_001), values, halves, halves - 1e-4, halves + 1e-4, torch.tensor([1e30, -1e30])])
        codes = ((x.clamp(-300, 300)[:, None] - values).abs() + torch.arange(len(values), 0, -1) * 1e-12).argmin(1)
        codes[torch.isin(x, halves)] = torch.bucketize(x[torch.isin(x, halves)], halves, right=True)  # half-way to the larger
        assert torch.equal(book.codes_(x.clone()).long(), codes)
        assert torch.equal(book.nearest_(x.clone()), values[codes])
        assert torch.equal(book.values_(codes.float()), values[codes])
