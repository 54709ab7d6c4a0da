"""Stored weights as plain ones: which decoder makes which plain tensor of a safetensors checkpoint.

A format's module says what it finds among the stored tensors (`plain`) and calls itself by a few words (`describe`). What no format
claims is plain already, or refused: integers are never taken for weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from qlab.formats import awq, bitsandbytes, gptq
from qlab.formats.compressed_tensors import reading, scheme
from qlab.formats.floats import fp8, mxfp4
from qlab.formats.plain import Plain, Stored, plainly_stored
from qlab.support.errors import UserError


class Format(NamedTuple):
    """A format's two functions of the configuration's `quantization_config`."""

    plain: Callable[[dict[str, Any], Stored], dict[str, Plain]]
    describe: Callable[[dict[str, Any]], str]


FORMATS = {
    "awq": Format(awq.plain, awq.describe),
    "gptq": Format(gptq.plain, gptq.describe),
    "bitsandbytes": Format(bitsandbytes.plain, bitsandbytes.describe),
    "fp8": Format(fp8.plain, fp8.describe),
    "fbgemm_fp8": Format(fp8.plain, fp8.describe),
    "mxfp4": Format(mxfp4.plain, mxfp4.describe),
    "compressed-tensors": Format(reading.plain, scheme.describe),
}
FLOATS = ("F64", "F32", "F16", "BF16")  # and numbers of 64 bits are no codes, but tables such as DeepSeek V4's of experts by token
# Scales of activations and of the key-value cache change no weight; masks and positions are no weights.
BESIDE = re.compile(r"(.*\.)?(input_scale|activation_scale|output_scale|[kv]_scale|[kv]_zero_point|input_zero_point|input_global_scale)")
BUFFER = re.compile(r"(.*\.)?(position_ids|token_type_ids|num_batches_tracked|attn\.bias|attention\.bias|masked_bias|causal_mask)")


def plain_tensors(quantization: dict[str, Any] | None, stored: Stored) -> dict[str, Plain]:
    """Every plain tensor of a checkpoint, in the order of the files.

    Args:
        quantization: the configuration's `quantization_config`, None where it has none.

    Raises:
        UserError: a format that qlab does not read, or tensors that are no plain numbers and that the format does not explain.
    """
    quantized = format_of(quantization).plain(quantization, stored) if quantization else {}
    made_of = {part: name for name, entry in quantized.items() for part in entry.parts.values()}
    found: dict[str, Plain] = {}
    for name, shape in stored.shapes.items():
        if (whole := made_of.get(name)) is not None:
            found[whole] = quantized[whole]
        elif not (quantization and BESIDE.fullmatch(name)):
            check_plain(name, shape, stored.dtypes[name], quantization)
            found[name] = plainly_stored(name, shape)
    return found


def describe(quantization: dict[str, Any]) -> str:
    """The format of a quantized checkpoint in a few words, for manifests and warnings."""
    return format_of(quantization).describe(quantization)


def format_of(quantization: dict[str, Any]) -> Format:
    """The format that a configuration names.

    Raises:
        UserError: qlab does not read it.
    """
    method = str(quantization.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in quantization else "unnamed"))
    if method not in FORMATS:
        raise UserError(
            f"the checkpoint is quantized as {method} (quantization_config in config.json), which qlab does not read; "
            f"it reads {', '.join(FORMATS)} and plain weights: take the checkpoint that it was quantized from"
        )
    return FORMATS[method]


def check_plain(name: str, shape: tuple[int, ...], dtype: str, quantization: dict[str, Any] | None) -> None:
    """Raise a UserError unless a tensor holds plain numbers, or is small enough or named so that it is no weight."""
    no_weight = not name.endswith((".weight", ".bias")) and (dtype == "BOOL" or (len(shape) < 2 and not dtype.startswith("F")))
    table = dtype == "I64" and not name.endswith(".weight")  # DeepSeek V4 looks experts up by tokens
    if dtype in FLOATS or table or BUFFER.fullmatch(name) or no_weight:
        return
    method = quantization.get("quant_method") if quantization else None
    reason = f"the configuration's quantization_config ({method})" if quantization else "config.json, which has no quantization_config,"
    raise UserError(
        f"{name} is stored as {dtype}, the codes of a quantized weight, and {reason} does not explain them: "
        "take the checkpoint that it was quantized from, or its whole configuration"
    )
