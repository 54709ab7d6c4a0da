"""What the compressed-tensors library makes of codes of every width, recorded: `compressed_words.json`.

    python tests/formats/compressed_words.py > tests/formats/compressed_words.json

Run where the library is, of version 0.20 or later: before, codes of 3, 5, 6 and 7 bits left a gap in every word. The environment of vLLM
0.32 has 0.17, so the words are kept here. Along rows lie weights (`weight_packed`), along columns zero points (`weight_zero_point`).
"""

import json
from importlib.metadata import version

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

WIDTHS, ROWS, COLUMNS = (2, 3, 4, 5, 6, 7, 8), 32, 64


def codes(bits: int) -> torch.Tensor:
    """Made-up codes int64 [ROWS, COLUMNS] from 0 on, the least and the largest among them."""
    row, column = torch.arange(ROWS)[:, None], torch.arange(COLUMNS)[None]
    return (column * column * 7 + row * 13 + column * 3) % 2**bits


def words(bits: int, along: int) -> list[list[int]]:
    return pack_to_int32((codes(bits) - 2 ** (bits - 1)).to(torch.int8), bits, packed_dim=along).tolist()


if __name__ == "__main__":
    made = {bits: {"weight_packed": words(bits, 1)[:2], "weight_zero_point": [row[:2] for row in words(bits, 0)]} for bits in WIDTHS}
    print(json.dumps({"version": version("compressed-tensors"), "words": made}))
