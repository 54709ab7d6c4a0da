"""Lesson 4: which bits of a Q4_K superblock's 144 bytes a sub-block of 32 weights is made of (ggml-common.h, block_q4_K)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SIZE = 32  # weights of a sub-block


class Piece(NamedTuple):
    """`width` bits of a byte, from bit `low` upwards, that stand `shift` bits higher in the number that they are part of."""

    byte: int
    low: int
    width: int
    shift: int = 0

    def of(self, block: Tensor) -> int:
        """What these bits of a superblock, uint8 [144], add to the number."""
        return (int(block[self.byte]) >> self.low & 2**self.width - 1) << self.shift

    def digits(self, block: Tensor) -> str:
        """The bits, highest first."""
        return f"{self.of(block) >> self.shift:0{self.width}b}"


@dataclass(frozen=True)
class SubBlock:
    """Sub-block `place` of a superblock: where its `scale`, `minimum` and codes lie, and what they hold.

    `d`, `dmin` are the superblock's; `codes` int64 [32]; `values` float32 [32], the weights that come back.
    """

    place: int
    d: float
    dmin: float
    scale: int
    minimum: int
    codes: Tensor

    @property
    def step(self) -> float:
        return self.d * self.scale

    @property
    def lowest(self) -> float:
        """What code 0 stands for."""
        return -self.dmin * self.minimum

    @property
    def values(self) -> Tensor:
        return torch.tensor(self.d) * self.scale * self.codes - torch.tensor(self.dmin) * self.minimum


def scale_pieces(place: int) -> list[Piece]:
    """The 6 bits of a sub-block's scale, highest first: of the last four they lie in two bytes."""
    return [Piece(4 + place, 0, 6)] if place < 4 else [Piece(place, 6, 2, 4), Piece(8 + place, 0, 4)]


def minimum_pieces(place: int) -> list[Piece]:
    """The 6 bits of a sub-block's minimum, highest first."""
    return [Piece(8 + place, 0, 6)] if place < 4 else [Piece(4 + place, 6, 2, 4), Piece(8 + place, 4, 4)]


def code_pieces(place: int) -> list[Piece]:
    """The 4 bits of each of a sub-block's 32 codes: two sub-blocks share 32 bytes, the first has the low halves."""
    first = 16 + SIZE * (place // 2)
    return [Piece(first + weight, 4 * (place % 2), 4) for weight in range(SIZE)]


def sub_block(block: Tensor, place: int) -> SubBlock:
    """Sub-block `place`, 0 to 7, of a superblock of Q4_K, uint8 [144]."""
    d, dmin = block[:4].view(torch.float16).tolist()
    scale, minimum = (sum(piece.of(block) for piece in pieces(place)) for pieces in (scale_pieces, minimum_pieces))
    return SubBlock(place, d, dmin, scale, minimum, torch.tensor([piece.of(block) for piece in code_pieces(place)]))
