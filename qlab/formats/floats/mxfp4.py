"""MXFP4 checkpoints, GPT-OSS's experts: blocks of 32 numbers of four bits (E2M1) that share an exponent (E8M0).

`…_blocks` uint8 [experts, out, in/32, 16], two numbers a byte, the first in the low half; `…_scales` uint8 [experts, out, in/32], the
exponent plus 127. The plain tensor is [experts, in, out], as transformers' GptOssExperts multiplies it
(transformers.integrations.mxfp4.convert_moe_packed_tensors).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qlab.formats.plain import Plain, Stored, check_parts
from qlab.support.errors import UserError

BLOCKS, SCALES = "_blocks", "_scales"
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
BIAS = 127


def plain(quantization: dict[str, Any], stored: Stored) -> dict[str, Plain]:
    """The MXFP4 tensors of a checkpoint by their plain names.

    Raises:
        UserError: blocks without scales, or of a shape that no experts have.
    """
    entries = {}
    for name, shape in stored.shapes.items():
        if not name.endswith(BLOCKS) or stored.dtypes[name] != "U8":
            continue
        whole = name.removesuffix(BLOCKS)
        if len(shape) != 4 or stored.shapes.get(whole + SCALES) != shape[:-1]:
            raise UserError(f"{name} is MXFP4 of shape {list(shape)}: expected four dimensions, and {whole}{SCALES} of the first three")
        check_parts(stored, {whole + SCALES: (shape[:-1], ("U8",))})
        experts, rows, blocks, size = shape
        entries[whole] = Plain((experts, 2 * blocks * size, rows), {"blocks": name, "scales": whole + SCALES}, decode, by_rows=True)
    return entries


def describe(quantization: dict[str, Any]) -> str:
    """The format in a few words."""
    return "MXFP4 in blocks of 32"


def decode(parts: dict[str, Tensor]) -> Tensor:
    """The experts' matrices, float32 [experts, in, out]; made an expert at a time, since the steps between are many times as large."""
    values = torch.tensor(VALUES)
    return torch.stack([matrix(blocks, scales, values) for blocks, scales in zip(parts["blocks"], parts["scales"])])


def matrix(blocks: Tensor, scales: Tensor, values: Tensor) -> Tensor:
    """One expert's: blocks [out, in/32, 16] and scales [out, in/32] → float32 [in, out]."""
    pairs = torch.stack([values[(blocks & 15).int()], values[(blocks >> 4).int()]], dim=-1).flatten(-2)
    return torch.ldexp(pairs, scales.int()[..., None] - BIAS).flatten(1).T
