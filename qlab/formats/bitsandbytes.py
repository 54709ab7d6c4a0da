"""NF4 and FP4 checkpoints as transformers saves them through bitsandbytes (bitsandbytes.functional.QuantState.as_dict).

A layer's weight uint8 [n/2, 1] holds two codes a byte, the first in the high nibble. Beside it, under names that begin with
the weight's: absmax, quant_map float32 [16] and, doubly quantized, nested_absmax and nested_quant_map float32 [256];
quant_state.bitsandbytes__nf4 (or fp4) is a JSON text in uint8 with all that is no tensor.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import prod
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator
from torch import Tensor, nn
from torch.nn.functional import pad

from qlab.formats.plain import AGAIN, Plain, Stored, check_parts
from qlab.methods.nf4 import BLOCK, KINDS, SUPERBLOCK, NestedAbsmax, NormalFloat, dynamic_map, nearest
from qlab.support.errors import UserError

STATE = "weight.quant_state.bitsandbytes__"
LARGEST_STATE = 1 << 14  # bytes; bitsandbytes writes two hundred
PACKED_ROWS = 32  # outputs that bitsandbytes' kernel for AVX512-BF16 takes together
Side = Annotated[int, Field(ge=1, le=1 << 26)]


class State(BaseModel):
    """The JSON text beside a layer's tensors."""

    model_config = ConfigDict(strict=True)
    quant_type: Literal["nf4", "fp4"]
    blocksize: Annotated[int, Field(ge=BLOCK, le=BLOCK)]
    dtype: Literal["float16", "bfloat16", "float32"]
    shape: Annotated[list[Side], Field(min_length=2, max_length=2)]
    nested_blocksize: Annotated[int, Field(ge=SUPERBLOCK, le=SUPERBLOCK)] = SUPERBLOCK
    nested_offset: FiniteFloat | None = None

    @model_validator(mode="before")
    @classmethod
    def nested_has_an_offset(cls, given: Any) -> Any:
        """A doubly quantized layer without its offset would be decoded as a singly quantized one."""
        if isinstance(given, dict) and "nested_offset" in given and given["nested_offset"] is None:
            raise ValueError("nested_offset is null")
        return given


def leave_unpacked(model: nn.Module) -> None:
    """Keep bitsandbytes from packing layers anew for AVX512-BF16 where it cannot: it takes whole blocks in a row and whole
    sets of rows, and stops with an error elsewhere (_convert_weight_packed_for_cpu). Its plain path computes those."""
    for module in model.modules():
        layer: Any = module
        if hasattr(module, "support_avx512bf16_for_cpu") and (layer.in_features % BLOCK or layer.out_features % PACKED_ROWS):
            layer.support_avx512bf16_for_cpu = False


def pack(tensor: NormalFloat) -> dict[str, Tensor]:
    """One layer's stored tensors: weight, weight.absmax, weight.quant_map, …

    Raises:
        UserError: levels that bitsandbytes does not know.
    """
    if tensor.kind not in KINDS:
        raise UserError(f"bitsandbytes stores the levels of {' and '.join(KINDS)} only: quantize without levels of your own")
    nested = tensor.nested
    stored = {
        "weight": pack_pairs(tensor.codes, tensor.levels),
        "weight.absmax": tensor.absmax if nested is None else nested.codes,
        "weight.quant_map": tensor.levels,
    }
    if nested is not None:
        stored["weight.nested_absmax"] = nested.absmax
        stored["weight.nested_quant_map"] = dynamic_map().to(tensor.codes.device)
    stored[STATE + tensor.kind] = torch.tensor(list(state_text(tensor).encode()), dtype=torch.uint8)
    return stored


def pack_pairs(codes: Tensor, levels: Tensor) -> Tensor:
    """Codes uint8 [n] into bytes uint8 [⌈n/2⌉, 1]; an odd one's partner is the code of zero, as in bitsandbytes."""
    if len(codes) % 2:
        zero = int(nearest(torch.zeros(1, device=levels.device), levels))
        codes = pad(codes, (0, 1), value=zero)
    return (codes[::2] << 4 | codes[1::2])[:, None]


def state_text(tensor: NormalFloat) -> str:
    """The JSON that bitsandbytes writes, its keys in its order."""
    state: dict[str, Any] = {
        "quant_type": tensor.kind,
        "blocksize": BLOCK,
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": tensor.shape,
    }
    if tensor.nested is not None:
        state |= {"nested_blocksize": SUPERBLOCK, "nested_dtype": "float32", "nested_offset": tensor.nested.offset.item()}
    return json.dumps(state)


def unpack(tensors: dict[str, Tensor]) -> NormalFloat:
    """Read one layer's stored tensors, named as `pack` names them.

    Raises:
        UserError: no state among them, or blocks of another size than qlab's.
    """
    kind = next((kind for kind in KINDS if STATE + kind in tensors), None)
    if kind is None:
        raise UserError(f"no {STATE}nf4 (or fp4) among {', '.join(sorted(tensors))}: expected a layer saved through bitsandbytes in 4 bits")
    state = read_state(tensors[STATE + kind], "the layer")
    rows, columns = state.shape
    pairs = tensors["weight"].flatten()
    codes = torch.stack([pairs >> 4, pairs & 15], dim=1).flatten()[: rows * columns]
    nested = None
    absmax = tensors["weight.absmax"]
    if state.nested_offset is not None:
        nested = NestedAbsmax(absmax, tensors["weight.nested_absmax"], torch.tensor(state.nested_offset, device=absmax.device))
        absmax = nested.dequantize()
    return NormalFloat((rows, columns), codes, absmax, tensors["weight.quant_map"], nested, kind, getattr(torch, state.dtype))


def read_state(stored: Tensor, name: str) -> State:
    """What is no tensor of the layer whose state `name` is.

    Raises:
        UserError: it is damaged, or of another block size than qlab reads.
    """
    try:
        return State.model_validate_json(bytes(stored.flatten().tolist()))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:40] or "it"
        raise UserError(f"{name} is damaged, or has blocks that qlab does not read ({where}: {first['msg'][:100]}): {AGAIN}") from error


def parts_of(state: State) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """The shapes and dtypes of the tensors beside a state, by their roles."""
    rows, columns = state.shape
    blocks = -(-rows * columns // BLOCK)
    found: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {"weight": ((-(-rows * columns // 2), 1), ("U8",))}
    if state.nested_offset is None:
        return found | {"weight.absmax": ((blocks,), ("F32",)), "weight.quant_map": ((16,), ("F32",))}
    return found | {
        "weight.absmax": ((blocks,), ("U8",)),
        "weight.quant_map": ((16,), ("F32",)),
        "weight.nested_absmax": ((-(-blocks // SUPERBLOCK),), ("F32",)),
        "weight.nested_quant_map": ((256,), ("F32",)),
    }


def plain(quantization: dict[str, Any], stored: Stored) -> dict[str, Plain]:
    """The quantized weights of a checkpoint by their plain names.

    Raises:
        UserError: INT8 weights, which qlab does not read, or tensors that do not fit each other.
    """
    if not quantization.get("load_in_4bit"):
        raise UserError(
            "the checkpoint holds 8-bit integers of bitsandbytes (load_in_8bit, scales named SCB), which qlab does not read: "
            "take the checkpoint that it was quantized from"
        )
    entries = {}
    for name in stored.shapes:
        layer, found, kind = name.partition(f".{STATE}")
        if not found:
            continue
        if kind not in KINDS or stored.dtypes[name] != "U8" or not 0 < prod(stored.shapes[name]) <= LARGEST_STATE:
            raise UserError(f"{name} is no state that bitsandbytes writes: {AGAIN}")
        state = read_state(stored.read(name), name)
        wanted = parts_of(state)
        check_parts(stored, {f"{layer}.{role}": form for role, form in wanted.items()})
        roles = [*wanted, name.removeprefix(f"{layer}.")]
        entries[f"{layer}.weight"] = Plain((state.shape[0], state.shape[1]), {role: f"{layer}.{role}" for role in roles}, decode)
    return entries


def describe(quantization: dict[str, Any]) -> str:
    """The format in a few words."""
    return f"bitsandbytes {str(quantization.get('bnb_4bit_quant_type', 'fp4')).upper()} in blocks of {BLOCK}"


def decode(parts: dict[str, Tensor]) -> Tensor:
    """The plain weight, float32 [out, in]."""
    return unpack(parts).dequantize()


def quantization_config(kind: str, double: bool, compute: str = "float32", skipped: Sequence[str] = ()) -> dict[str, Any]:
    """`quantization_config` of config.json, as BitsAndBytesConfig writes it.

    `compute` is the dtype that runtimes multiply in; `skipped` names the linear layers left unquantized, where empty means
    transformers' own choice: the head.
    """
    return {
        "_load_in_4bit": True,
        "_load_in_8bit": False,
        "bnb_4bit_compute_dtype": compute,
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": double,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": list(skipped) or None,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "quant_method": "bitsandbytes",
    }
