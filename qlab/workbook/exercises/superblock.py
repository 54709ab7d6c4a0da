"""Lesson 4: the 144 bytes of a Q4_K superblock back into 256 weights."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from qlab.formats.gguf.block_bytes import byte_tensor
from qlab.methods.kquants.blocks import SUPERBLOCK, encode
from qlab.workbook.exercises.answer import Asked
from qlab.workbook.exercises.trial import Case, Mistake, Numbers, Written, first_difference
from qlab.workbook.language.spoken import gettext, say

KIND = "Q4_K"


def decode_superblock(block: Tensor) -> Tensor:
    """A superblock of Q4_K, uint8 [144] → its 256 weights, float32 [256]."""
    d, dmin = block[:4].view(torch.float16).float()
    first, second, third = block[4:16].int().view(3, 4)
    nibbles = block[16:].int().view(4, 1, 32)
    codes = torch.cat([nibbles & 15, nibbles >> 4], dim=1).view(8, 32)
    scales = torch.cat([first & 63, (third & 15) | (first >> 6 << 4)])
    minima = torch.cat([second & 63, (third >> 4) | (second >> 6 << 4)])
    return ((d * scales)[:, None] * codes - (dmin * minima)[:, None]).flatten()


def superblock_of(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The first 256 weights of a matrix, float32 [256], zeros for those that it lacks; and their superblock, uint8 [144]."""
    weights = torch.zeros(SUPERBLOCK)
    few = weight.flatten()[:SUPERBLOCK].float().cpu()
    weights[: len(few)] = few
    return weights, byte_tensor(encode(weights[None], KIND))[0]


@cache
def expected_of() -> dict[bytes, Tensor]:
    """Superblocks by their bytes, with the weights that qlab decodes them to; sub-blocks of unequal size, so that scales fill 6 bits."""
    found = {}
    for seed, gains in enumerate(([8, 7, 6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6, 7, 8], [1, 8, 1, 6, 1, 8, 3, 1])):
        generator = torch.Generator().manual_seed(seed)
        size = torch.tensor(gains).repeat_interleave(32)
        weight = 0.02 * size * (torch.randn(SUPERBLOCK, generator=generator) + 0.5)
        blocks = encode(weight[None], KIND)
        found[byte_tensor(blocks)[0].numpy().tobytes()] = blocks.dequantize()[0]
    return found


def cases() -> list[Case]:
    return [{"block": torch.frombuffer(bytearray(found), dtype=torch.uint8)} for found in expected_of()]


def qlabs(block: Tensor) -> Tensor:
    """What qlab decodes a block of `cases` to, without its bytes."""
    return expected_of()[block.numpy().tobytes()]


def decode(
    block: Tensor, masked: bool = True, tops: bool = True, turned: bool = False, swapped: bool = False, sign: int = -1,
    scaled: bool = True, runs: bool = True,
) -> Tensor:  # fmt: skip
    """The decoder with one thing wrong, each named by what it says of the right one."""
    d, dmin = block[:4].view(torch.float16).float() if scaled else torch.ones(2)
    first, second, third = block[4:16].int().view(3, 4)
    low, high = (third >> 4, third & 15) if turned else (third & 15, third >> 4)
    whole = 63 if masked else 255
    scales = torch.cat([first & whole, low | (first >> 6 << 4 if tops else 0)])
    minima = torch.cat([second & whole, high | (second >> 6 << 4 if tops else 0)])
    if swapped:
        scales, minima = minima, scales
    nibbles = block[16:].int().view(4, 1, 32)
    pair = [nibbles & 15, nibbles >> 4]
    codes = (torch.cat(pair, dim=1) if runs else torch.stack(pair, dim=-1)).reshape(8, 32)
    return ((d * scales)[:, None] * codes + sign * (dmin * minima)[:, None]).flatten()


def differs(case: Case, found: Tensor, expected: Tensor) -> str:
    """Which sub-blocks are right."""
    right = [
        bool(torch.allclose(a, b, rtol=0, atol=1e-3 * float(b.abs().max())))
        for a, b in zip(found.view(8, 32), expected.double().view(8, 32))
    ]
    if all(right[:4]):
        return gettext("Sub-blocks 0 to 3 are right; of 4 to 7 the scales or the minima are not. Their bits lie in two places.")
    if all(right[4:]):
        return gettext("Sub-blocks 4 to 7 are right; of 0 to 3 the scales or the minima are not.")
    wrong = [str(place) for place, good in enumerate(right) if not good]
    text = say("Wrong are sub-blocks {places}.", places=", ".join(wrong))
    return f"{text} {first_difference(found, expected.double(), 1e-3)}"


WRITTEN = Written(
    solution=decode_superblock,
    expected=qlabs,
    cases=cases,
    form=Numbers("256 weights in one row"),
    mistakes=(
        Mistake(lambda block: decode(block, sign=1), "The minimum is added. It is stored without a sign, so take it off: d·s·q − dmin·m."),
        Mistake(lambda block: decode(block, sign=0), "The minima are missing: d·s·q is right, now take dmin·m off."),
        Mistake(
            lambda block: decode(block, masked=False),
            "The first four scales and minima are too large: two bits of each byte belong to the last four. Keep the low six (& 63).",
        ),
        Mistake(
            lambda block: decode(block, tops=False),
            "The last four scales and minima lack their two highest bits, which lie at the top of the first eight of the twelve bytes.",
        ),
        Mistake(
            lambda block: decode(block, turned=True),
            "In the last four sub-blocks, scale and minimum are exchanged: of a byte of `third`, the low half belongs to the scale.",
        ),
        Mistake(
            lambda block: decode(block, swapped=True),
            "Scales and minima are exchanged: the first four bytes are scales, the next four minima.",
        ),
        Mistake(lambda block: decode(block, scaled=False), "d and dmin are missing: the weights are whole numbers still."),
        Mistake(
            lambda block: decode(block, runs=False),
            "The codes are in another order: the low halves of 32 bytes are one sub-block, the high halves the next.",
        ),
    ),
    differs=differs,
    hints=(
        "Write it for the first four sub-blocks alone: their scales are the low six bits of `first`, their minima those of `second`.",
        "`x & 63` keeps the low six bits of x, `x >> 6` the two above them.",
        "Of the last four, the low four bits of scale and minimum share a byte of `third`: `& 15` and `>> 4`.",
        "Their two highest bits are the top two of `first` (scale) and of `second` (minimum). `<< 4` puts them in their place, `|` joins.",
        "`torch.cat` joins four and four to eight. Each serves 32 codes, a row of `codes`: `scales[:, None] * codes`.",
    ),
)


def error_of(weights: Tensor) -> float:
    """The error of a superblock of these 256 weights, in % of the squared weights."""
    return 100 * float((encode(weights[None], KIND).dequantize()[0] - weights).square().sum() / weights.square().sum())


ASKED = {
    "a superblock of your model": Asked(
        "% of the squared weights", error_of, "100 times the sum of the squared differences, divided by the sum of the squared weights."
    ),
}
