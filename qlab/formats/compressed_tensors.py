"""compressed-tensors, the format of llm-compressor and vLLM: packed integers of up to 8 bits, INT8, FP8.

pack-quantized: weight_packed int32 [out, ⌈in·b/32⌉], the codes plus 2^(b-1), one stream of bits a row; weight_scale [out, groups];
asymmetric ones have weight_zero_point, packed likewise along its rows, int32 [⌈out·b/32⌉, groups]; weight_shape int64 [out, in];
weight_g_idx int32 [in] where groups are scattered. int-, float- and naive-quantized: weight itself is int8 or FP8, zero points unpacked.
All decode to (q − z) · scale, computed and rounded in the dtype of the scale
(compressed_tensors.quantization.lifecycle.forward.dequantize); the float32 that comes out here holds those very numbers.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qlab.formats.packing import WIDTHS, WORD, period, unpack_words
from qlab.formats.plain import Plain, Stored
from qlab.support.errors import UserError

PACKED, NAIVE = "pack-quantized", ("int-quantized", "float-quantized", "naive-quantized")
CODES = ("I8", "F8_E4M3", "F8_E5M2")
ROLES = ("scale", "zero_point", "g_idx", "shape")
STRATEGIES = ("tensor", "channel", "group", "block")
WHY = "take the original checkpoint, or convert it with the library that wrote it"


def plain(quantization: dict[str, Any], stored: Stored) -> dict[str, Plain]:
    """The quantized tensors of a checkpoint by their plain names.

    Raises:
        UserError: a layout or a scheme that qlab does not read.
    """
    check(quantization)
    entries = {}
    for name, dtype in stored.dtypes.items():
        layer, _, part = name.rpartition(".")
        if part not in ("weight_packed", "weight") or (part == "weight" and dtype not in CODES):
            continue
        scheme = scheme_of(layer, quantization)
        parts = {role: f"{layer}.weight_{role}" for role in ROLES if f"{layer}.weight_{role}" in stored.shapes}
        if "scale" not in parts:
            raise UserError(f"{name} holds codes, and their scale, {layer}.weight_scale, is not in the checkpoint: fetch it again")
        bits = int(scheme["num_bits"])
        shape = packed_shape(layer, bits, scheme, stored) if part == "weight_packed" else stored.shapes[name]
        step = tuple(scheme.get("block_structure") or ()) if scheme.get("strategy") == "block" else ()
        packed_zeros = stored.dtypes.get(parts.get("zero_point", "")) == "I32"
        decoder = partial(decode, shape=shape, bits=bits if part == "weight_packed" else None, block=step, zero_bits=bits * packed_zeros)
        entries[f"{layer}.weight"] = Plain(shape, {"codes": name, **parts}, decoder)
    return entries


def check(quantization: dict[str, Any]) -> None:
    """Raise the UserError that a configuration asks for: one that `decode` would read wrongly."""
    groups = quantization.get("config_groups") or {}
    layouts = {quantization.get("format", PACKED), *(group["format"] for group in groups.values() if group.get("format"))}
    if unknown := sorted(str(layout) for layout in layouts - {PACKED, *NAIVE, "dense", "mixed-precision"}):
        raise UserError(f"the checkpoint is compressed-tensors {unknown[0]}; qlab reads {PACKED}, {', '.join(NAIVE)}: {WHY}")
    if (sparsity := (quantization.get("sparsity_config") or {}).get("format", "dense")) != "dense":
        raise UserError(f"the checkpoint is compressed-tensors with the sparsity format {sparsity}, which qlab does not read: {WHY}")
    if (quantization.get("transform_config") or {}).get("config_groups"):
        raise UserError(f"the checkpoint turns activations before its layers (transform_config), which qlab does not do: {WHY}")
    for group in groups.values():
        weights = group.get("weights") or {"strategy": "tensor", "num_bits": 8}
        if weights.get("strategy") not in STRATEGIES:
            readable = ", ".join(STRATEGIES)
            raise UserError(f"the checkpoint is compressed-tensors of strategy {weights.get('strategy')}; qlab reads {readable}: {WHY}")
        if weights.get("num_bits") not in WIDTHS:
            readable = ", ".join(map(str, WIDTHS))
            raise UserError(f"the checkpoint is compressed-tensors of {weights.get('num_bits')} bits; qlab reads {readable}: {WHY}")


def describe(quantization: dict[str, Any]) -> str:
    """The format in a few words, such as "compressed-tensors, 4-bit int in groups of 128"."""
    kinds: dict[str, None] = {}
    for group in (quantization.get("config_groups") or {}).values():
        if weights := group.get("weights"):
            where = {"group": f"in groups of {weights.get('group_size')}", "channel": "a scale a row", "tensor": "a scale a tensor"}
            kind = f"{weights['num_bits']}-bit {weights.get('type', 'int')} {where.get(weights.get('strategy'), 'in blocks')}"
            kinds[kind] = None
    return ", ".join(["compressed-tensors", *kinds])


def scheme_of(layer: str, quantization: dict[str, Any]) -> dict[str, Any]:
    """How the weights of a layer are quantized: by the group that names it, by one whose pattern fits, or by the first for its class.

    Raises:
        UserError: no group has weights for it.
    """
    groups = [group for group in (quantization.get("config_groups") or {}).values() if group.get("weights")]

    def rank(group: dict[str, Any]) -> int:
        targets = group.get("targets") or []
        if layer in targets:
            return 0
        return 1 if any(target.startswith("re:") and re.match(target[3:], layer) for target in targets) else 2

    plausible = [group for group in groups if rank(group) < 2 or any(not target.startswith("re:") for target in group.get("targets") or [])]
    if not plausible:
        raise UserError(f"{layer} is stored quantized, and no config_groups of the configuration says how: fetch the checkpoint again")
    scheme: dict[str, Any] = min(plausible, key=rank)["weights"]
    return scheme


def packed_shape(layer: str, bits: int, scheme: dict[str, Any], stored: Stored) -> tuple[int, ...]:
    """The plain shape of a packed weight: by its groups where it has some, else as weight_shape says.

    Raises:
        UserError: it is not there, or contradicts the words.
    """
    words = stored.shapes[f"{layer}.weight_packed"]
    columns = words[-1] * WORD // bits
    if scheme.get("strategy") == "group" and f"{layer}.weight_g_idx" not in stored.shapes:
        columns = stored.shapes[f"{layer}.weight_scale"][-1] * int(scheme["group_size"])
    elif f"{layer}.weight_shape" in stored.shapes:
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
        return values[..., g_idx.long()]
    return values.repeat_interleave(shape[-1] // values.shape[-1], dim=-1)
