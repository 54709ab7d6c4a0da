"""Eight 4-bit codes in an int32 word, as AWQ and GPTQ both store them."""

from __future__ import annotations

import torch
from torch import Tensor

PER_WORD = 8


def unpack_words(words: Tensor, order: tuple[int, ...] = tuple(range(PER_WORD))) -> Tensor:
    """Spread int32 [rows, n] into 4-bit codes, uint8 [rows, 8·n]; nibble i of a word holds column `order[i]` of its eight."""
    shifts = torch.arange(0, 32, 4)
    nibbles = (words.unsqueeze(-1) >> shifts) & 15
    columns = torch.empty_like(nibbles)
    columns[..., list(order)] = nibbles
    return columns.to(torch.uint8).flatten(-2)
