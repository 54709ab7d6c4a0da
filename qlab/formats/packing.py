"""Codes of 2 to 8 bits in int32 words, as AWQ, GPTQ and compressed-tensors store them.

A row of codes is one little-endian stream of bits: code j starts at bit j·bits, the lowest bit first. 2, 4 and 8 bits fill
a word with whole codes; of 3 bits, 32 codes fill three words, and two of them lie across a boundary (auto_gptq's
QuantLinear.pack writes those boundaries out by hand). 5, 6 and 7 bits are compressed-tensors' alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from qlab.support.errors import UserError

WORD = 32  # bits
WIDTHS = (2, 3, 4, 5, 6, 7, 8)


def period(bits: int) -> int:
    """How many codes fill whole words: 16, 8 and 4 for 2, 4 and 8 bits, 16 for 6, and 32 for 3, 5 and 7.

    Raises:
        UserError: a width that no such format has.
    """
    if bits not in WIDTHS:
        raise UserError(f"codes of {bits} bits cannot be packed into words: choose one of {', '.join(map(str, WIDTHS))}")
    return math.lcm(WORD, bits) // bits


def pack_words(codes: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Codes of any integer type [rows, n], each in 0 … 2^bits − 1, into int32 [rows, n·bits/32].

    `order` names the column that each place of a period holds; None is the natural order.

    Raises:
        UserError: n is no multiple of the period, or a code needs more bits.
    """
    rows, columns = codes.shape
    size = period(bits)
    if columns % size:
        raise UserError(f"{columns} codes of {bits} bits do not fill whole 32-bit words: their number must be a multiple of {size}")
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= 2**bits:  # it would run over its neighbours
        raise UserError(f"codes from {low} to {high} do not fit into {bits} bits: expected 0 to {2**bits - 1}")
    codes = codes.reshape(rows, columns // size, size)
    words = torch.zeros(rows, columns // size, size * bits // WORD, dtype=torch.int32, device=codes.device)
    for column, word, shift in places(bits, order):
        code = codes[..., column].int()
        words[..., word] |= code << shift
        if shift + bits > WORD:  # the rest of the code opens the next word
            words[..., word + 1] |= code >> (WORD - shift)
    return words.flatten(1)


def unpack_words(words: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """The inverse of `pack_words`: int32 [rows, m] into codes, uint8 [rows, 32·m/bits]."""
    rows, stored = words.shape
    size = period(bits)
    per_period = size * bits // WORD
    words = words.reshape(rows, stored // per_period, per_period)
    codes = torch.empty(rows, stored // per_period, size, dtype=torch.uint8, device=words.device)
    for column, word, shift in places(bits, order):
        code = words[..., word] >> shift
        if shift + bits > WORD:
            here = WORD - shift  # bits in this word; the shift above drew the sign into the rest
            code = code & (2**here - 1) | words[..., word + 1] << here
        codes[..., column] = (code & (2**bits - 1)).to(torch.uint8)
    return codes.flatten(1)


def places(bits: int, order: tuple[int, ...] | None) -> Iterator[tuple[int, int, int]]:
    """(column, word, shift) of each place of a period: which code lies there, in which word, from which bit on."""
    for place, column in enumerate(order or range(period(bits))):
        yield column, place * bits // WORD, place * bits % WORD
