"""What compressed-tensors stores: integers packed, for activations of 16 bits; int8 and FP8, for activations of 8 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qlab.formats.compressed_tensors.scheme import PACKED
from qlab.formats.packing import WORD, pack_words, period
from qlab.methods.fp8 import Block, ScaledFloats
from qlab.methods.grid import GroupedIntegers
from qlab.support.errors import UserError

BY_TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
BY_TENSOR = BY_TOKEN | {"strategy": "tensor", "dynamic": False}  # with an input_scale beside each layer's weight


def pack(tensor: GroupedIntegers, symmetric: bool) -> dict[str, Tensor]:
    """One layer's stored tensors: weight_packed, weight_scale, weight_shape, weight_zero_point unless it is `symmetric`, and weight_g_idx
    where groups are scattered. Shapes and dtypes: qlab.formats.compressed_tensors.reading.

    Signed codes and zero points, q − 2^(b-1) and z − 2^(b-1), have 2^(b-1) added before they are packed: q and z are what lies there
    (compressed_tensors.compressors.pack_quantized.helpers.pack_to_int32).

    Raises:
        UserError: a width or shape that the format cannot hold, or symmetric codes whose zero point is not in the middle.
    """
    rows, columns = tensor.codes.shape
    period(tensor.bits)
    if reason := unfit(rows, columns):
        raise UserError(f"a compressed-tensors checkpoint cannot hold this layer: {reason}")
    if tensor.group_of is None and columns % tensor.scales.shape[1]:
        raise UserError(f"{columns} inputs cannot be cut into {tensor.scales.shape[1]} equal groups: choose a group size that divides them")
    if symmetric and bool((tensor.zeros != 2 ** (tensor.bits - 1)).any()):
        raise UserError("symmetric codes of compressed-tensors have no zero points, and this layer has some: store it as asymmetric")
    found = {
        "weight_packed": pack_words(tensor.codes, tensor.bits),
        "weight_scale": tensor.scales.half().contiguous(),
        "weight_shape": torch.tensor([rows, columns], dtype=torch.int64),
    }
    if not symmetric:
        found["weight_zero_point"] = pack_words(tensor.zeros.T, tensor.bits).T.contiguous()
    if tensor.group_of is not None:
        found["weight_g_idx"] = tensor.group_of.int()
    return found


def pack_int8(tensor: GroupedIntegers) -> dict[str, Tensor]:
    """One layer's stored tensors for 8 bits both ways: weight int8 [out, in] and weight_scale float16 [out, 1].

    Raises:
        UserError: not 8 bits, symmetric, and one group a row.
    """
    if tensor.bits != 8 or tensor.scales.shape[1] != 1 or bool((tensor.zeros != 128).any()):
        raise UserError("weights for 8-bit activations are symmetric integers of 8 bits with a scale a row: quantize them so")
    return {"weight": (tensor.codes.short() - 128).to(torch.int8), "weight_scale": tensor.scales.half().contiguous()}


def pack_floats(tensor: ScaledFloats) -> dict[str, Tensor]:
    """One layer's stored tensors: weight float8_e4m3fn [out, in], and weight_scale float32, one a row [out, 1] or a block [down, across].

    Scales are float32, as vLLM holds them. FP16 has few digits below 6e-5, where the scales of weights smaller than 0.03 lie.
    """
    return {"weight": tensor.codes, "weight_scale": tensor.scales.contiguous()}


def unfit(outputs: int, inputs: int) -> str:
    """Why runtimes cannot read a layer of this shape; empty where they can. The format itself pads a last word, their kernels do not."""
    whole = outputs % WORD == 0 and inputs % WORD == 0
    return "" if whole else f"{outputs} outputs and {inputs} inputs are not both multiples of {WORD}, which packed words need"


def integers(bits: int, group_size: int, symmetric: bool, act_order: bool) -> dict[str, Any]:
    """How weights are rounded to grouped integers; `act_order` says that groups are scattered (weight_g_idx)."""
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "channel" if group_size == -1 else "group",
        "group_size": None if group_size == -1 else group_size,
        "actorder": "group" if act_order else None,
        "dynamic": False,
    }


def floats(block: Block | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """How weights are rounded to FP8, with a scale a row or a `block`, and how activations are then: by token, or by as many channels of a
    token as a block has columns (compressed_tensors.quantization.quant_scheme: FP8_DYNAMIC and FP8_BLOCK)."""
    both = {"num_bits": 8, "type": "float", "symmetric": True}
    if block is None:
        return both | {"strategy": "channel", "dynamic": False}, both | {"strategy": "token", "dynamic": True}
    weights = both | {"strategy": "block", "block_structure": list(block), "dynamic": False}
    return weights, both | {"strategy": "group", "group_size": block[1], "dynamic": True}


def quantization_config(
    weights: Mapping[str, Any], inputs: Mapping[str, Any] | None = None, skipped: Sequence[str] = (), apart: Sequence[str] = ()
) -> dict[str, Any]:
    """`quantization_config` of config.json: how weights are rounded (`integers`, `floats`), and activations where they are (`BY_TOKEN`,
    `BY_TENSOR`). `skipped` and `apart`: as in mixed_config."""
    return mixed_config([(["Linear"], weights)], inputs, skipped, apart)


def mixed_config(
    groups: Sequence[tuple[Sequence[str], Mapping[str, Any]]],
    inputs: Mapping[str, Any] | None = None,
    skipped: Sequence[str] = (),
    apart: Sequence[str] = (),
) -> dict[str, Any]:
    """`quantization_config` of layers whose weights are rounded in several ways: `groups` are the targets of each (names, patterns or
    classes), and the way, all integers or all floats.

    `skipped` names the linear layers that are left unquantized and `apart` modules that no layer of a block is, with all that lies in
    them: both by the last parts of their names. "lm_head" is among neither; it is always left (`ignore`).
    """
    (kind,) = {weights["type"] for _, weights in groups}
    rest = {"input_activations": dict(inputs) if inputs else None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": f"{kind}-quantized" if inputs else PACKED,
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{number}": {"targets": list(targets), "weights": dict(weights), **rest}
            for number, (targets, weights) in enumerate(groups)
        },
        "ignore": ["lm_head", *(ending(name) for name in skipped), *(ending(name, within=True) for name in apart)],
    }


def ending(name: str, within: bool = False) -> str:
    """The pattern of modules whose names end in `name`, and of all `within` them where that is asked."""
    escaped = name.replace(".", r"\.")
    return rf"re:(.*\.)?{escaped}" + (r"(\..*)?$" if within else "$")
