"""FP8 checkpoints: weights of eight bits (E4M3, seldom E5M2) and a scale a tensor, a row or a block of 128 x 128.

transformers' FineGrainedFP8 (DeepSeek, Qwen3-…-FP8, Ministral 3) stores the scale beside `weight` as `weight_scale_inv`, AutoFP8 and
FBGEMM as `weight_scale`; fused experts as `gate_up_proj` and `gate_up_proj_scale_inv`. In all of them w = q · scale, in float32
(transformers.integrations.finegrained_fp8.Fp8Dequantize). compressed-tensors rounds otherwise: see compressed_tensors/reading.py.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from qlab.formats.plain import AGAIN, HALVES, Plain, Stored
from qlab.methods.fp8 import times_scales
from qlab.support.errors import UserError

DTYPES = {"F8_E4M3": "E4M3", "F8_E5M2": "E5M2"}  # safetensors' names, and the field's
SCALES = ("_scale_inv", "_scale")
LARGEST_BLOCK = 1 << 20
BIAS = 127  # of an E8M0 exponent that is stored as a byte


def plain(quantization: dict[str, Any], stored: Stored) -> dict[str, Plain]:
    """The FP8 tensors of a checkpoint by their names.

    Raises:
        UserError: a tensor without a scale, or with one whose shape does not fit.
    """
    entries = {}
    for name, dtype in stored.dtypes.items():
        if dtype not in DTYPES:
            continue
        scale = next((name + suffix for suffix in SCALES if name + suffix in stored.shapes), None)
        if scale is None:
            raise UserError(f"{name} is FP8 and its scale, {name}{SCALES[0]} or …{SCALES[1]}, is missing: fetch the checkpoint again")
        shape = stored.shapes[name]
        check_scale(name, scale, stored)
        block = block_size(name, shape, stored.shapes[scale], given_block(quantization))
        entries[name] = Plain(shape, {"weight": name, "scale": scale}, partial(decode, block=block))
    return entries


def describe(quantization: dict[str, Any]) -> str:
    """The format in a few words, such as "FP8 E4M3 in blocks of 128 x 128"."""
    kind = str(quantization.get("fmt", "e4m3")).upper()
    block = given_block(quantization)
    return f"FP8 {kind} in blocks of {block[0]} x {block[1]}" if block else f"FP8 {kind}"


def given_block(quantization: dict[str, Any]) -> list[int] | None:
    """The rows and columns of a block, where the configuration says.

    Raises:
        UserError: they are no two whole numbers.
    """
    found = quantization.get("weight_block_size")
    if found is None:
        return None
    if not isinstance(found, list) or len(found) != 2 or not all(type(size) is int and 0 < size <= LARGEST_BLOCK for size in found):
        raise UserError(
            f"weight_block_size of the quantization_config is {str(found)[:40]}: expected two whole numbers, such as [128, 128]"
        )
    return found


def check_scale(name: str, scale: str, stored: Stored) -> None:
    """See that a scale is of numbers, and of the weight's dimensions where it has several.

    Raises:
        UserError: it is not.
    """
    shape, across = stored.shapes[name], stored.shapes[scale]
    fits = not across or (len(across) == 1 and across[0] in (1, shape[0])) or (len(across) > 1 and across[:-2] in ((), shape[:-2]))
    if not shape or not all(shape) or not all(across) or not fits or stored.dtypes[scale] not in (*HALVES, "U8", "F8_E8M0"):
        found = f"{stored.dtypes[scale]} {list(across)[:9]}"
        raise UserError(f"{scale} is {found}, which cannot be the scale of {name} of shape {list(shape)[:9]}: {AGAIN}")


def block_size(name: str, shape: tuple[int, ...], scale: tuple[int, ...], given: list[int] | None) -> tuple[int, int]:
    """Rows and columns that share a scale: those `given` by the configuration, unless the scale is one a tensor or a row; where nothing is
    given, what the shapes divide into.

    Raises:
        UserError: they do not fit.
    """
    rows, columns = shape[-2:] if len(shape) > 1 else (1, shape[0])
    across = grid(scale, rows)
    if given and across == tuple(-(-size // step) for size, step in zip((rows, columns), given)):
        return given[0], given[1]
    if rows % across[0] or columns % across[1] or (given and across not in ((1, 1), (rows, 1))):
        scales = f"{across[0]} x {across[1]} scales"
        raise UserError(f"{name} has {rows} x {columns} weights and {scales}, which do not fit them: fetch the checkpoint again")
    return rows // across[0], columns // across[1]


def grid(scale: tuple[int, ...], rows: int) -> tuple[int, int]:
    """How many scales a matrix of so many rows has down and across; a vector of scales is one a row."""
    if len(scale) > 1:
        return scale[-2], scale[-1]
    return (rows, 1) if scale == (rows,) else (1, 1)


def decode(parts: dict[str, Tensor], block: tuple[int, int]) -> Tensor:
    """q · scale, float32."""
    return times_scales(parts["weight"], scale_values(parts["scale"]), block)


def scale_values(scale: Tensor) -> Tensor:
    """Scales in float32; bytes are exponents of two."""
    return (scale.float() - BIAS).exp2() if scale.dtype == torch.uint8 else scale.float()
