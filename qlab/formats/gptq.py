"""The GPTQ checkpoint format, versions 1 and 2, as AutoGPTQ and gptqmodel write it and vLLM and TGI read it.

qweight int32 [in·b/32, out], the bits in order along `in`; qzeros int32 [in/g, out·b/32]; scales fp16 [in/g, out]; g_idx
int32 [in], the group of each column (auto_gptq.nn_modules.qlinear). w = (q − z)·s. Version 1 stores z − 1, version 2 z.

A zero point of 0 in version 1: AutoGPTQ 0.7.1 ORs the −1 over all higher zero points of its word, and reads a stored field
of all ones as z = 2^b (it adds 1 and does not mask), as does vLLM's exllama kernel; gptqmodel adds 1 to all fields of a word
at once, so that all ones carry into the neighbour. No stored value means 0 to all of them. `pack` therefore never stores
all ones: it moves such a group up by one code where there is room, which is exact, and refuses where there is not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qlab.formats.dynamic import all_settings, settings_of
from qlab.formats.packing import WORD, pack_words, unpack_words
from qlab.formats.plain import AGAIN, HALVES, Plain, Stored, check_parts, groups_of, layers
from qlab.methods.grid import GroupedIntegers, column_groups
from qlab.support.errors import UserError

VERSIONS = {1: "gptq", 2: "gptq_v2"}  # config.json's name for each, `checkpoint_format`
STORED_LESS = {1: 1, 2: 0}  # what each takes from a zero point before storing it

WIDTHS = (2, 3, 4, 8)  # bits that runtimes unpack


def pack(tensor: GroupedIntegers, version: int = 1) -> dict[str, Tensor]:
    """One layer's stored tensors: qweight, qzeros, scales, g_idx.

    Raises:
        UserError: a width, version or shape that the format cannot hold, or a zero point of 0 that version 1 cannot.
    """
    rows, columns = tensor.codes.shape
    groups = tensor.scales.shape[1]
    if tensor.bits not in WIDTHS:
        raise UserError(
            f"GPTQ checkpoints hold codes of {', '.join(map(str, WIDTHS))} bits, not of {tensor.bits} bits: choose one of these"
        )
    if version not in VERSIONS:
        raise UserError(f"there is no version {version} of the GPTQ format: choose 1 or 2")
    if reason := unfit(rows, columns):
        raise UserError(f"a GPTQ checkpoint cannot hold this layer: {reason}")
    if tensor.group_of is None and columns % groups:
        raise UserError(f"{columns} inputs cannot be cut into {groups} equal groups: choose a group size that divides {columns}")
    group_of = (column_groups(columns, groups) if tensor.group_of is None else tensor.group_of).to(tensor.codes.device)
    codes, zeros = (tensor.codes, tensor.zeros) if version == 2 else without_zero(tensor, group_of)
    return {
        "qweight": pack_words(codes, tensor.bits).T.contiguous(),
        "qzeros": pack_words((zeros - STORED_LESS[version]).T, tensor.bits),
        "scales": tensor.scales.T.half().contiguous(),
        "g_idx": group_of.int(),
    }


def unfit(outputs: int, inputs: int) -> str:
    """Why the format cannot hold a layer of this shape; empty where it can. Readers allocate in // 32 · bits words, whatever the width."""
    whole = outputs % WORD == 0 and inputs % WORD == 0
    return "" if whole else f"{outputs} outputs and {inputs} inputs are not both multiples of {WORD}, which GPTQ's words need"


def without_zero(tensor: GroupedIntegers, group_of: Tensor) -> tuple[Tensor, Tensor]:
    """The same weights with every zero point at least 1: codes uint8 [out, in], zeros int16 [out, groups].

    Raises:
        UserError: a group with zero point 0 uses its highest code, and so cannot move up.
    """
    raised = tensor.zeros == 0
    if not raised.any():
        return tensor.codes, tensor.zeros
    moved = raised[:, group_of]
    if (tensor.codes[moved] == 2**tensor.bits - 1).any():
        raise UserError(
            "a group of weights of one sign has the zero point 0, which version 1 of the GPTQ format cannot hold: "
            "write version 2 (checkpoint_format gptq_v2), or quantize symmetrically"
        )
    return tensor.codes + moved.to(tensor.codes.dtype), tensor.zeros + raised.to(tensor.zeros.dtype)


def unpack(tensors: dict[str, Tensor], version: int = 1, bits: int = 4) -> GroupedIntegers:
    """Read one layer's stored tensors (qweight, qzeros, scales and, where groups are scattered, g_idx).

    Version 1 adds 1 to each zero point, without masking: all ones read as 2^bits, as AutoGPTQ reads them.

    Raises:
        UserError: g_idx names a group that has no scale.
    """
    codes = unpack_words(tensors["qweight"].T, bits)
    scales = tensors["scales"].float().T.contiguous()
    group_of = tensors["g_idx"].long() if "g_idx" in tensors else None
    if group_of is not None and not bool(((group_of >= 0) & (group_of < scales.shape[1])).all()):
        raise UserError(f"g_idx of a layer names groups {int(group_of.min())} to {int(group_of.max())}, of {scales.shape[1]}: {AGAIN}")
    if group_of is not None and torch.equal(group_of, column_groups(codes.shape[1], scales.shape[1]).to(group_of.device)):
        group_of = None
    zeros = unpack_words(tensors["qzeros"], bits).T.short() + STORED_LESS[version]
    return GroupedIntegers(codes, scales, zeros.contiguous(), bits, group_of)


def plain(quantization: dict[str, Any], stored: Stored) -> dict[str, Plain]:
    """The quantized weights of a checkpoint by their plain names.

    Raises:
        UserError: another version or width than qlab reads, or tensors that do not fit each other.
    """
    layout = str(quantization.get("checkpoint_format") or VERSIONS[1]).lower()
    version = next((version for version, name in VERSIONS.items() if name == layout), None)
    widths = [settings.get("bits") for settings in all_settings(quantization)]
    unread = [bits for bits in widths if type(bits) is not int or bits not in WIDTHS]
    if version is None or unread:
        readable = f"{', '.join(VERSIONS.values())} of {', '.join(map(str, WIDTHS))} bits"
        bits = str([*unread, *widths][0])[:20]
        raise UserError(f"the checkpoint is GPTQ {layout} of {bits} bits; qlab reads {readable}: convert it with GPTQModel")
    entries = {}
    for name, (words, columns) in layers(stored, "qweight"):
        bits = settings_of(name, quantization)["bits"]
        check_width(stored, name, columns, bits)
        decoder, reader = partial(decode, version=version, bits=bits), partial(unpack, version=version, bits=bits)
        inputs, scales = words * WORD // bits, f"{name}.scales"
        scattered = f"{name}.g_idx" in stored.shapes
        groups = (stored.shapes.get(scales) or (0,))[0] if scattered else groups_of(stored, scales, inputs)
        wanted = {
            "qweight": ((words, columns), ("I32",)),
            "qzeros": ((groups, columns * bits // WORD), ("I32",)),
            "scales": ((groups, columns), HALVES),
        } | ({"g_idx": ((inputs,), ("I32", "I64"))} if scattered else {})
        check_parts(stored, {f"{name}.{role}": form for role, form in wanted.items()})
        parts = {role: f"{name}.{role}" for role in wanted}
        entries[f"{name}.weight"] = Plain((columns, inputs), parts, decoder, integers=reader)
    return entries


def check_width(stored: Stored, layer: str, outputs: int, bits: int) -> None:
    """Raise a UserError where the zero points of a layer are of another width than the configuration says."""
    zeros = stored.shapes.get(f"{layer}.qzeros") or (0,)
    found = zeros[-1] * WORD / outputs
    if found != bits and found in WIDTHS:
        raise UserError(
            f"{layer} is stored in {found:.0f} bits, and the configuration says {bits}: take the config.json that came with "
            "the checkpoint, whose dynamic names the layers of other widths"
        )


def describe(quantization: dict[str, Any]) -> str:
    """The format in a few words, such as "GPTQ, 4 bits in groups of 128, 8 bits in groups of 64" where layers differ."""
    kinds = [f"{said.get('bits', '?')} bits in groups of {said.get('group_size', '?')}" for said in all_settings(quantization)]
    return ", ".join(["GPTQ", *dict.fromkeys(kinds)])


def decode(parts: dict[str, Tensor], version: int, bits: int) -> Tensor:
    """The plain weight, float32 [out, in]."""
    return unpack(parts, version, bits).dequantize()


def quantization_config(
    bits: int,
    group_size: int,
    symmetric: bool,
    act_order: bool,
    version: int = 1,
    skipped: Sequence[str] = (),
    quantized: Sequence[str] = (),
    apart: Sequence[str] = (),
) -> dict[str, Any]:
    """`quantization_config` of config.json. `act_order` (desc_act) must be true where groups are scattered: without it,
    kernels such as vLLM's Marlin take them for consecutive and never look at g_idx.

    `skipped` names linear layers of the blocks that are left unquantized, and `quantized` the others. gptqmodel reads the former
    (`dynamic`, a pattern with "-:" in front excludes a layer), optimum the latter (`modules_in_block_to_quantize`), vLLM both. `apart`
    names modules that no layer of a block is: they are excluded with all that lies in them.
    """
    excluded = {f"-:(?:.*\\.)?{re.escape(name)}$": dict[str, Any]() for name in skipped}
    excluded |= {f"-:(?:.*\\.)?{re.escape(name)}(?:\\..*)?$": dict[str, Any]() for name in apart}
    choice: dict[str, Any] = {"dynamic": excluded} if excluded else {}
    choice |= {"modules_in_block_to_quantize": [list(quantized)]} if skipped else {}
    return choice | {
        "quant_method": "gptq",
        "checkpoint_format": VERSIONS[version],
        "bits": bits,
        "group_size": group_size,
        "sym": symmetric,
        "desc_act": act_order,
    }
