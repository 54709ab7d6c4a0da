"""The AWQ checkpoint format, GEMM version, as AutoAWQ writes it and vLLM, TGI and gptqmodel read it.

qweight int32 [in, out/8], qzeros int32 [in/g, out/8], scales fp16 [in/g, out]; nibble i of a word holds column
[0, 2, 4, 6, 1, 3, 5, 7][i] of its eight; w = (q − z)·s, the zero point stored as it is
(awq.modules.linear.gemm.WQLinear_GEMM).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from qlab.formats.packing import pack_words, unpack_words
from qlab.formats.plain import HALVES, Plain, Stored, check_parts, groups_of, layers
from qlab.methods.grid import GroupedIntegers
from qlab.support.errors import UserError
from qlab.support.wording import Sentence

BITS = 4
PER_WORD = 8
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def pack(tensor: GroupedIntegers) -> dict[str, Tensor]:
    """One layer's stored tensors: qweight, qzeros, scales.

    Raises:
        UserError: not 4 bits, scattered groups, or a shape that the format cannot hold.
    """
    rows, columns = tensor.codes.shape
    groups = tensor.scales.shape[1]
    if tensor.bits != BITS:
        raise UserError(f"an AWQ checkpoint holds codes of 4 bits, not {tensor.bits}: quantize to 4 bits, or write GPTQ")
    if tensor.group_of is not None:
        raise UserError("an AWQ checkpoint holds groups of consecutive columns only: quantize without activation order, or write GPTQ")
    if reason := unfit(rows, columns):
        raise UserError(f"an AWQ checkpoint cannot hold this layer: {reason}")
    if columns % groups:
        raise UserError(f"{columns} inputs cannot be cut into {groups} equal groups: choose a group size that divides {columns}")
    return {
        "qweight": pack_words(tensor.codes.T, BITS, ORDER),
        "qzeros": pack_words(tensor.zeros.T, BITS, ORDER),
        "scales": tensor.scales.T.half().contiguous(),
    }


def unfit(outputs: int, inputs: int) -> str:
    """Why the format cannot hold a layer of this shape; empty where it can."""
    return Sentence("{outputs} outputs do not fill AWQ's words of {words}", outputs=outputs, words=PER_WORD) if outputs % PER_WORD else ""


def unpack(tensors: dict[str, Tensor]) -> GroupedIntegers:
    """Read one layer's stored tensors (qweight, qzeros, scales)."""
    return GroupedIntegers(
        codes=unpack_words(tensors["qweight"], BITS, ORDER).T.contiguous(),
        scales=tensors["scales"].float().T.contiguous(),
        zeros=unpack_words(tensors["qzeros"], BITS, ORDER).T.short().contiguous(),
        bits=BITS,
    )


def plain(quantization: dict[str, Any], stored: Stored) -> dict[str, Plain]:
    """The quantized weights of a checkpoint by their plain names.

    Raises:
        UserError: another version or width than qlab reads, or tensors that do not fit each other.
    """
    version, bits = str(quantization.get("version", "gemm")).lower(), quantization.get("bits", BITS)
    if version != "gemm" or bits != BITS:
        raise UserError(f"the checkpoint is AWQ {version} of {bits} bits; qlab reads AWQ gemm of {BITS} bits: convert it with AutoAWQ")
    entries = {}
    for name, (rows, words) in layers(stored, "qweight"):
        parts = {role: f"{name}.{role}" for role in ("qweight", "qzeros", "scales")}
        groups = groups_of(stored, parts["scales"], rows)
        wanted = {
            "qweight": ((rows, words), ("I32",)),
            "qzeros": ((groups, words), ("I32",)),
            "scales": ((groups, words * PER_WORD), HALVES),
        }
        check_parts(stored, {parts[role]: form for role, form in wanted.items()})
        entries[f"{name}.weight"] = Plain((words * PER_WORD, rows), parts, decode, integers=unpack)
    return entries


def describe(quantization: dict[str, Any]) -> str:
    """The format in a few words."""
    return f"AWQ, {BITS} bits in groups of {quantization.get('group_size', '?')}"


def decode(parts: dict[str, Tensor]) -> Tensor:
    """The plain weight, float32 [out, in]."""
    return unpack(parts).dequantize()


def quantization_config(group_size: int, skipped: Sequence[str] = ()) -> dict[str, Any]:
    """`quantization_config` of config.json; `skipped` names the linear layers left unquantized, such as "lm_head".

    Readers look for such a name in a layer's (vLLM, AutoAWQ) or at its end (transformers).
    """
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": BITS,
        "group_size": group_size,
        "zero_point": True,
        "modules_to_not_convert": list(skipped) or None,
    }
