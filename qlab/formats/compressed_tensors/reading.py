"""compressed-tensors, the format of llm-compressor and vLLM: packed integers of up to 8 bits, INT8, FP8.

pack-quantized: weight_packed int32 [out, ⌈in·b/32⌉], the codes plus 2^(b-1), one stream of bits a row; weight_scale [out, groups];
asymmetric ones have weight_zero_point, packed likewise along its rows, int32 [⌈out·b/32⌉, groups]; weight_shape int64 [out, in];
weight_g_idx int32 [in] where groups are scattered. int-, float- and naive-quantized: weight itself is int8 or FP8, zero points unpacked.
All decode to (q − z) · scale, computed and rounded in the dtype of the scale
(compressed_tensors.quantization.lifecycle.forward.dequantize); the float32 that comes out here holds those very numbers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from qlab.formats.compressed_tensors.scheme import Weights, scheme_in, scheme_of
from qlab.formats.packing import WORD, period, unpack_words
from qlab.formats.plain import AGAIN, HALVES, Plain, Stored, check_parts
from qlab.methods.grid import GroupedIntegers
from qlab.support.errors import UserError

CODES = ("I8", "F8_E4M3", "F8_E5M2")
ROLES = ("scale", "zero_point", "g_idx", "shape")


def plain(quantization: dict[str, Any], stored: Stored) -> dict[str, Plain]:
    """The quantized tensors of a checkpoint by their plain names.

    Raises:
        UserError: a layout or a scheme that qlab does not read.
    """
    known, entries = scheme_in(quantization), {}
    for name, dtype in stored.dtypes.items():
        layer, _, part = name.rpartition(".")
        if part not in ("weight_packed", "weight") or (part == "weight" and dtype not in CODES):
            continue
        if len(stored.shapes[name]) < 2 or not all(stored.shapes[name]):
            raise UserError(f"{name} has the shape {list(stored.shapes[name])[:9]}: expected a matrix; {AGAIN}")
        scheme = scheme_of(layer, known)
        parts = {role: f"{layer}.weight_{role}" for role in ROLES if f"{layer}.weight_{role}" in stored.shapes}
        if "scale" not in parts:
            raise UserError(f"{name} holds codes, and their scale, {layer}.weight_scale, is not in the checkpoint: fetch it again")
        bits = scheme.num_bits
        shape = packed_shape(layer, scheme, stored) if part == "weight_packed" else stored.shapes[name]
        check_companions(name, parts, shape, scheme, stored)
        step = tuple(scheme.block_structure or ())
        packed_zeros = stored.dtypes.get(parts.get("zero_point", "")) == "I32"
        decoder = partial(decode, shape=shape, bits=bits if part == "weight_packed" else None, block=step, zero_bits=bits * packed_zeros)
        grouped = part == "weight_packed" and len(shape) == 2
        reader = partial(unpack, shape=shape, bits=bits, packed_zeros=packed_zeros) if grouped else None
        entries[f"{layer}.weight"] = Plain(shape, {"codes": name, **parts}, decoder, integers=reader)
    return entries


def check_companions(name: str, parts: dict[str, str], shape: tuple[int, ...], scheme: Weights, stored: Stored) -> None:
    """See that what lies beside the codes `name` of a weight of this shape fits it.

    Raises:
        UserError: it does not.
    """
    *outside, rows, columns = shape
    scale = stored.shapes[parts["scale"]]
    if scheme.group_size:
        forms = [(*outside, rows, -(-columns // scheme.group_size))]
    elif scheme.block_structure:
        forms = [(*outside, -(-rows // scheme.block_structure[0]), -(-columns // scheme.block_structure[1]))]
    else:
        forms = [(), (1,), (*outside, rows, 1), *([] if outside else [(rows,)])]
    check_parts(stored, {parts["scale"]: (scale if scale in forms else forms[0], HALVES)})
    zeros = parts.get("zero_point", "")
    if not scheme.symmetric and not zeros:
        raise UserError(f"{name} has no zero points beside it, which its configuration speaks of: {AGAIN}")
    if stored.dtypes.get(zeros) == "I32":
        packed = (*outside, -(-rows * scheme.num_bits // WORD), scale[-1] if scale else 1)
        check_parts(stored, {zeros: (packed, ("I32",))})
    elif zeros:
        check_parts(stored, {zeros: (scale, ("I8", *CODES))})
    if "g_idx" in parts:
        check_parts(stored, {parts["g_idx"]: ((columns,), ("I32", "I64"))})
    if name.endswith("packed"):
        check_parts(stored, {name: (stored.shapes[name], ("I32",))})


def packed_shape(layer: str, scheme: Weights, stored: Stored) -> tuple[int, ...]:
    """The plain shape of a packed weight: by its groups where it has some, else as weight_shape says.

    Raises:
        UserError: it is not there, or contradicts the words.
    """
    words, bits = stored.shapes[f"{layer}.weight_packed"], scheme.num_bits
    columns = words[-1] * WORD // bits
    if scheme.group_size and f"{layer}.weight_g_idx" not in stored.shapes:
        columns = (stored.shapes[f"{layer}.weight_scale"] or (0,))[-1] * scheme.group_size
    elif f"{layer}.weight_shape" in stored.shapes:
        check_parts(stored, {f"{layer}.weight_shape": ((len(words),), ("I64", "I32"))})
        columns = int(stored.read(f"{layer}.weight_shape")[-1])
    if -(-columns * bits // WORD) != words[-1]:
        raise UserError(f"{layer}.weight_packed has rows of {words[-1]} words, not those of {columns} codes of {bits} bits: fetch it again")
    return (*words[:-1], columns)


def decode(parts: dict[str, Tensor], shape: tuple[int, ...], bits: int | None, block: tuple[int, ...], zero_bits: int) -> Tensor:
    """(q − z) · scale, in the scale's dtype, as float32. `bits` are None where codes are not packed, `zero_bits` 0 where zeros are not."""
    scale = parts["scale"]
    codes = parts["codes"] if bits is None else unpacked(parts["codes"], bits, shape[-1])
    zeros = parts.get("zero_point")
    if zeros is not None and zero_bits:
        zeros = unpacked(zeros.transpose(-1, -2), zero_bits, shape[-2]).transpose(-1, -2)
    scale = spread(scale, shape, block, parts.get("g_idx"))
    weight = codes.to(scale.dtype)
    if zeros is not None:
        weight = weight - spread(zeros.to(scale.dtype), shape, block, parts.get("g_idx"))
    return (weight * scale).float()


def unpack(parts: dict[str, Tensor], shape: tuple[int, ...], bits: int, packed_zeros: bool) -> GroupedIntegers:
    """The codes, scales and zero points of one packed layer, codes and zero points from 0 on."""
    rows, columns = shape
    middle, scales = 2 ** (bits - 1), parts["scale"].float().reshape(-1, parts["scale"].shape[-1] if parts["scale"].dim() > 1 else 1)
    scales = scales.expand(rows, -1).contiguous()  # one a tensor is one a row
    zeros = parts.get("zero_point")
    if zeros is None:
        zeros = torch.zeros(scales.shape)
    elif packed_zeros:
        zeros = unpacked(zeros.T, bits, rows).T
    group_of = parts["g_idx"].long() if "g_idx" in parts and bool((parts["g_idx"] >= 0).all()) else None
    codes = (unpacked(parts["codes"], bits, columns).short() + middle).to(torch.uint8)
    return GroupedIntegers(codes, scales, (zeros.short() + middle).expand(rows, -1).contiguous(), bits, group_of)


def unpacked(words: Tensor, bits: int, count: int) -> Tensor:
    """Signed codes int8 [..., count] of rows of words."""
    rows = words.reshape(-1, words.shape[-1])
    missing = -rows.shape[1] % (period(bits) * bits // WORD)  # words after the last code are not stored
    codes = unpack_words(torch.nn.functional.pad(rows, (0, missing)), bits)[:, :count]
    return (codes.short() - 2 ** (bits - 1)).to(torch.int8).reshape(*words.shape[:-1], count)


def spread(values: Tensor, shape: tuple[int, ...], block: tuple[int, ...], g_idx: Tensor | None) -> Tensor:
    """Scales or zero points, one a tensor, row, group or block, as something that multiplies the weights of `shape`."""
    if values.numel() == 1:
        return values.reshape(())
    if values.dim() == 1:
        return values[:, None]
    if block:
        down = values.repeat_interleave(block[0], dim=-2)[..., : shape[-2], :]
        return down.repeat_interleave(block[1], dim=-1)[..., : shape[-1]]
    if values.shape[-1] == 1:
        return values
    if g_idx is not None and bool((g_idx >= 0).all()):
        if int(g_idx.max()) >= values.shape[-1]:
            raise UserError(f"weight_g_idx of a layer names group {int(g_idx.max())}, of {values.shape[-1]}: {AGAIN}")
        return values[..., g_idx.long()]
    return values.repeat_interleave(shape[-1] // values.shape[-1], dim=-1)
