"""The block formats of llama.cpp by their numbers (ggml-common.h, block_q4_K and its kin)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from qlab.methods.kquants.codebook import Codebook

IQ4 = Codebook((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))  # ggml-common.h, kvalues_iq4nl
# How far beyond its ends the farthest weight of a block is sent, or short of them, by the trials of a codebook.
BEYOND = range(-20, 21, 5)


@dataclass(frozen=True)
class Kind:
    """How a format cuts and counts: blocks of `block` weights, in sub-blocks of `size`, codes of `bits`.

    `affine` grids have a minimum and codes from 0; the others have codes about zero, or of the values of a `book`. Sub-blocks' scales
    are integers of at most `units` in magnitude; 0 means that a block has one scale. `bytes` is what a block takes on disk.

    `spread` is how much of the mean square x̄² enters the weight of an error, importance · √(spread · x̄² + x²) (ggml-quants.c,
    quantize_row_*_impl); None leaves importance alone.
    """

    block: int
    size: int
    bits: int
    affine: bool
    units: int
    bytes: int
    spread: float | None
    book: Codebook | None = None

    @property
    def levels(self) -> int:
        """The largest code."""
        return int(2**self.bits - 1)

    @property
    def middle(self) -> int:
        """The code that stands for zero."""
        return 0 if self.affine else int(2 ** (self.bits - 1))

    @property
    def ends(self) -> tuple[int, int]:
        """What the first and the last code of a grid without a minimum stand for, in units of its scale."""
        return (self.book.values[0], self.book.values[-1]) if self.book else (-self.middle, self.levels - self.middle)

    @property
    def searched(self) -> bool:
        """Whether scales are searched without importance too; the others are gguf-py's own plain rounding then."""
        return bool(self.units) or self.book is not None

    def counted(self, codes: Tensor) -> Tensor:
        """What codes stand for in units of their scale, before any minimum: uint8 of any shape → float32."""
        return self.book.values_(codes.float()) if self.book else codes.float().sub_(self.middle)

    def trials(self, weighted: bool) -> tuple[float, ...]:
        """The numbers of steps over which the search stretches a block's range: about the plain one, more to the coarse side.

        With 3 bits and without importance (`weighted`), three of them do nearly as well. The values of a codebook differ on its two sides:
        the farthest weight is sent to both, which negative numbers say of the upper one.
        """
        if self.book:
            low, high = self.ends
            return tuple(-low + step for step in BEYOND) + tuple(-high - step for step in BEYOND)
        if self.affine:
            return tuple(self.levels + 0.3 * i for i in range(-5, 5))
        if self.bits == 3 and not weighted:
            return tuple(self.middle + 0.5 * i for i in (-1.5, -0.5, 0.5))
        return tuple(self.middle + 0.5 * i for i in range(-4, 3))


KINDS = {
    "Q8_0": Kind(32, 32, 8, False, 0, 34, None),
    "Q5_1": Kind(32, 32, 5, True, 0, 24, 1),
    "Q5_0": Kind(32, 32, 5, False, 0, 22, 1),
    "Q4_0": Kind(32, 32, 4, False, 0, 18, 1),
    "Q6_K": Kind(256, 16, 6, False, 128, 210, None),
    "Q5_K": Kind(256, 32, 5, True, 63, 176, 2),
    "Q4_K": Kind(256, 32, 4, True, 63, 144, 2),
    "Q3_K": Kind(256, 16, 3, False, 32, 110, 2),
    "Q2_K": Kind(256, 16, 2, True, 15, 84, 1),
    "IQ4_NL": Kind(32, 32, 4, False, 0, 18, 2, IQ4),
    "IQ4_XS": Kind(256, 32, 4, False, 32, 136, 2, IQ4),
}
