"""A checkpoint's tensors as a GGUF file stores them: names, types, the order of rows, and bytes; and back from these to weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import gguf
import torch
from torch import Tensor

from qlab.formats.gguf.block_bytes import byte_tensor
from qlab.formats.gguf.metadata import architecture, described
from qlab.formats.gguf.mix import tensor_type
from qlab.methods.kquants.blocks import encode
from qlab.methods.kquants.kinds import KINDS
from qlab.methods.settle import settle_blocks
from qlab.support.errors import UserError
from qlab.support.stages import stage

AT_ONCE, ON_DEVICE = 1 << 22, 1 << 26  # see weights_at_once: on a CPU and elsewhere
SETTLED_BITS = 5  # with more, another rounding of the codes changes next to nothing
TYPES = {"F32": torch.float32, "F16": torch.float16}

EXPERT = re.compile(r"\.experts\.\d+\.")

Encoder = Callable[[Tensor, str, Tensor | None], Tensor]
"""(matrix [out, in], kind, importance [in] or None) → its bytes, uint8 [out, bytes a row]."""


def encode_tensor(
    name: str, tensor: Tensor, mix: str, config: dict[str, Any], importance: Tensor | None = None, encoder: Encoder | None = None
) -> dict[str, Tensor]:
    """One tensor of a checkpoint, as `encode_tensors` has it: a dictionary of one entry, or an empty one."""
    return encode_tensors({name: tensor}, mix, config, importance, encoder)


def encode_tensors(
    tensors: Mapping[str, Tensor], mix: str, config: dict[str, Any], importance: Tensor | None = None, encoder: Encoder | None = None
) -> dict[str, Tensor]:
    """Tensors of a checkpoint that read the same input, as the mix stores them: {"<GGML type>:<GGUF name>": tensor}, in their order.

    Quantized types are uint8 [rows, bytes a row], the others float. Rows of query and key projections come in llama.cpp's order.
    What GGUF derives itself is left out: rotary frequencies, and the output where it is the embedding. Small matrices of one type
    are encoded as one, which takes fewer and larger steps. No row knows of another, but sums of another width may round another way:
    codes that were gone over again then differ here and there from those of each tensor alone.

    Args:
        tensors: by their Hugging Face names, "model.layers.0.self_attn.q_proj.weight".
        importance: the mean squared activation of each input channel [in].
        encoder: what makes the blocks, qlab's own where it is None.

    Raises:
        UserError: an unknown mix or architecture, a tensor without a place in it, or weights that cannot be encoded.
    """
    sources = {
        f"{tensor_type(target, tensor.shape, mix, config)}:{target}": (name, tensor)
        for name, tensor in tensors.items()
        if (target := gguf_name(name, config)) is not None
    }
    stored: dict[str, Tensor] = {}
    for keys in batches({key: tensor for key, (_, tensor) in sources.items()}):
        named = {sources[key][0]: in_its_form(*sources[key], config) for key in keys}
        stored |= zip(keys, encode_together(named, keys[0].partition(":")[0], importance, encoder or encode_rows), strict=True)
    return {key: stored[key] for key in sources}


def batches(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Keys of encode_tensors that are encoded together: of one quantized type, and together no more than what is encoded at a time."""
    by_kind: dict[str, list[str]] = {}
    for key in tensors:
        by_kind.setdefault(key.partition(":")[0], []).append(key)
    for kind, keys in by_kind.items():
        together = kind not in TYPES and sum(tensors[key].numel() for key in keys) <= weights_at_once(tensors[keys[0]].device)
        yield from [keys] if together else ([key] for key in keys)


def encode_together(tensors: Mapping[str, Tensor], kind: str, importance: Tensor | None, encoder: Encoder) -> Sequence[Tensor]:
    """What each of `tensors`, by the names for errors, becomes as `kind`; several are matrices of equal rows, encoded as one.

    Raises:
        UserError: weights that cannot be encoded, with the name of their tensor.
    """
    (name, tensor), *others = tensors.items()
    try:
        if kind in TYPES:
            return [as_float(tensor, kind)]
        matrix = torch.cat(list(tensors.values())) if others else tensor
        return encoder(matrix, kind, importance).split([len(tensor) for tensor in tensors.values()])
    except UserError as error:
        if not others:
            raise UserError(f"{name}: {error}") from error
        for name, tensor in tensors.items():  # whichever it is fails alone, and is named
            encode_together({name: tensor}, kind, importance, encoder)
        raise


def weights_at_once(device: torch.device) -> int:
    """Weights to encode, settle and turn into bytes at a time."""
    return AT_ONCE if device.type == "cpu" else ON_DEVICE


def as_float(tensor: Tensor, kind: str) -> Tensor:
    """The tensor as the float type `kind`; raises UserError where that cannot hold it."""
    stored = tensor.to(TYPES[kind])
    if not bool(stored.isfinite().all()):
        raise UserError(f"holds NaN, infinite values or values beyond {kind}'s range; check the checkpoint")
    return stored.contiguous()


def gguf_name(name: str, config: dict[str, Any]) -> str | None:
    """GGUF's name for the tensor `name`; None for what GGUF derives itself.

    Raises:
        UserError: an unknown architecture, or a tensor without a place in it.
    """
    if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.get("tie_word_embeddings", False)):
        return None
    if (target := placed(name, config)) is None:
        raise UserError(f"{name} has no place in a GGUF file of architecture {gguf.MODEL_ARCH_NAMES[architecture(config)]}")
    return target


def placed(name: str, config: dict[str, Any]) -> str | None:
    """GGUF's name for the tensor `name`, if the architecture has a place for it; raises UserError for an unknown architecture."""
    names = gguf_names(architecture(config), config["num_hidden_layers"])
    whole = EXPERT.sub(".experts.", name.replace("model.language_model.", "model."))  # experts' matrices are one tensor
    for alias in (whole, whole.replace(".block_sparse_moe.", ".mlp.").replace(".router.", ".gate.")):
        if (found := names.get_name(alias, try_suffixes=(".weight", ".bias"))) is not None:
            return found if found.endswith((".weight", ".bias")) else f"{found}.weight"  # attention sinks are no layer's
    return None


def encode_rows(tensor: Tensor, kind: str, importance: Tensor | None, hessian: Callable[[], Tensor] | None = None) -> Tensor:
    """The bytes of a matrix, uint8 [rows, bytes a row], made some rows at a time.

    With `hessian`, which makes H [in, in] as qlab.methods.settle wants it, codes of up to SETTLED_BITS are gone over again.
    """
    rows, columns = tensor.shape
    out = torch.empty(rows, columns // KINDS[kind].block * KINDS[kind].bytes, dtype=torch.uint8, device=tensor.device)
    step = max(1, weights_at_once(tensor.device) // columns)
    again = hessian() if hessian and KINDS[kind].bits <= SETTLED_BITS else None
    for part, stored in zip(tensor.split(step), out.split(step)):
        blocks = encode(part, kind, importance)
        if again is not None:
            with stage("settle"):
                blocks = settle_blocks(blocks, part.float(), again)
        stored.copy_(byte_tensor(blocks))
    return out


@lru_cache(maxsize=4)
def gguf_names(arch: gguf.MODEL_ARCH, layers: int) -> gguf.TensorNameMap:
    """GGUF's names for an architecture's tensors."""
    return gguf.get_tensor_name_map(arch, layers)


def in_its_form(name: str, tensor: Tensor, config: dict[str, Any]) -> Tensor:
    """The tensor as llama.cpp's architecture has it: norms with what their family adds to the weights, rows of queries and keys in the
    order of an interleaved rotary embedding where it has such a one (its "llama" models)."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config.get("num_key_value_heads") or config["num_attention_heads"]}
    part, form = name.split(".")[-2], described(config)
    if form.offset and part.endswith("norm"):
        return tensor + form.offset
    if not form.turned or part not in heads:
        return tensor
    return tensor.view(heads[part], 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def decode(stored: dict[str, Tensor]) -> Tensor:
    """The weights, float32, of one tensor that encode_tensors returned; query and key rows stay in llama.cpp's order.

    By gguf-py: its decoder is not ours, so it judges our encoder.
    """
    ((key, tensor),) = stored.items()
    kind = key.partition(":")[0]
    if tensor.is_floating_point():
        return tensor.float()
    return torch.from_numpy(gguf.quants.dequantize(tensor.cpu().numpy(), gguf.GGMLQuantizationType[kind]))
