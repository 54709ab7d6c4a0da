"""A sub-block's fields, read bit by bit, are what gguf-py decodes; and every bit of the superblock belongs to one field."""

from __future__ import annotations

import gguf
import pytest
import torch

from qlab.formats.gguf.block_bytes import byte_tensor
from qlab.methods.kquants.blocks import encode
from qlab.workbook.drawn.superblock import code_pieces, minimum_pieces, scale_pieces, sub_block

WEIGHTS = 0.05 * (torch.randn(256, generator=torch.Generator().manual_seed(5)) + 0.4) * torch.arange(1, 9).repeat_interleave(32)
BLOCKS = encode(WEIGHTS[None], "Q4_K")
BYTES = byte_tensor(BLOCKS)[0]


@pytest.mark.parametrize("place", range(8))
def test_a_sub_block_is_what_the_owner_of_the_format_reads(place: int) -> None:
    found = sub_block(BYTES, place)
    expected = gguf.quants.dequantize(BYTES.numpy(), gguf.GGMLQuantizationType.Q4_K)[32 * place :][:32]
    torch.testing.assert_close(found.values, torch.from_numpy(expected), rtol=1e-6, atol=0)
    assert (found.scale, found.minimum) == (int(BLOCKS.scales[0, place]), int(BLOCKS.mins[0, place]))
    assert torch.equal(found.codes, BLOCKS.codes[0, place].long())
    assert found.values.min() >= found.lowest - 1e-6


def test_the_scales_need_all_six_bits() -> None:
    assert max(sub_block(BYTES, place).scale for place in range(4, 8)) > 15  # else the two bits elsewhere are not tried


def test_every_bit_belongs_to_one_field() -> None:
    pieces = [piece for place in range(8) for field in (scale_pieces, minimum_pieces, code_pieces) for piece in field(place)]
    bits = [(piece.byte, bit) for piece in pieces for bit in range(piece.low, piece.low + piece.width)]
    assert sorted(bits) == [(byte, bit) for byte in range(4, 144) for bit in range(8)]
