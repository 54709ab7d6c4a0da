"""A checkpoint's tensors as a GGUF file stores them: names, types, forms, and bytes; and back from these to weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import gguf
import torch
from torch import Tensor

from qlab.formats.gguf.architectures import ARCHITECTURES, standard
from qlab.formats.gguf.block_bytes import byte_tensor, from_bytes
from qlab.formats.gguf.forms import SAME, Form
from qlab.formats.gguf.metadata import architecture
from qlab.formats.gguf.mix import Mix, expert_count, tensor_type
from qlab.methods.kquants.blocks import encode
from qlab.methods.kquants.kinds import KINDS
from qlab.methods.settle import settle_blocks
from qlab.support.errors import UserError
from qlab.support.finite import all_finite
from qlab.support.stages import stage

AT_ONCE, ON_DEVICE = 1 << 22, 1 << 26  # see weights_at_once: on a CPU and elsewhere
SETTLED_BITS = 5  # with more, another rounding of the codes changes next to nothing
TYPES = {"F32": torch.float32, "F16": torch.float16}

EXPERT = re.compile(r"\.experts\.\d+\.")
WRAPPED = re.compile(r"^(?:model\.(?:language_model|text_model)|language_model\.model)\.")
OUTPUTS = ("lm_head.weight", "embed_out.weight")

Encoder = Callable[[Tensor, str, Tensor | None], Tensor]
"""(matrix [out, in], kind, importance [in] or None) → its bytes, uint8 [out, bytes a row]."""


def encode_tensor(
    name: str, tensor: Tensor, mix: Mix, config: dict[str, Any], importance: Tensor | None = None, encoder: Encoder | None = None
) -> dict[str, Tensor]:
    """One tensor of a checkpoint, as `encode_tensors` has it: a dictionary of one entry, or an empty one."""
    return encode_tensors({name: tensor}, mix, config, importance, encoder)


def encode_tensors(
    tensors: Mapping[str, Tensor], mix: Mix, config: dict[str, Any], importance: Tensor | None = None, encoder: Encoder | None = None
) -> dict[str, Tensor]:
    """Tensors of a checkpoint that read the same input, as the mix stores them: {"<GGML type>:<GGUF name>": tensor}, in their order.

    Quantized types are uint8 [..., rows, bytes a row], the others float; each tensor in its form (qlab.formats.gguf.forms), which may be
    several. What GGUF derives itself is left out: rotary frequencies, and the output where it is the embedding. Small matrices of one
    type are encoded as one, which takes fewer and larger steps. No row knows of another, but sums of another width may round another way:
    codes that were gone over again then differ here and there from those of each tensor alone.

    Args:
        tensors: by their Hugging Face names, "model.layers.0.self_attn.q_proj.weight".
        importance: the mean squared activation of each input channel [in].
        encoder: what makes the blocks, qlab's own where it is None.

    Raises:
        UserError: an unknown mix or architecture, a tensor without a place in it, or weights that cannot be encoded.
    """
    parts, names = {}, {}
    for name, tensor in tensors.items():
        for part in parts_of(name, tensor, config):
            key = f"{tensor_type(part.name, part.tensor.shape, mix, config)}:{part.name}"
            parts[key], names[key] = part, name
    stored: dict[str, Tensor] = {}
    for keys in batches({key: part.tensor for key, part in parts.items() if part.reads_inputs}):
        named = [(names[key], parts[key].tensor) for key in keys]
        stored |= zip(keys, encode_together(named, keys[0].partition(":")[0], importance, encoder or encode_rows), strict=True)
    for key, part in parts.items():
        if not part.reads_inputs:
            stored[key] = encode_together([(names[key], part.tensor)], key.partition(":")[0], None, encode_rows)[0]
    return {key: stored[key] for key in parts}


def batches(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Keys of encode_tensors that are encoded together: of one quantized type, and together no more than what is encoded at a time."""
    by_kind: dict[str, list[str]] = {}
    for key in tensors:
        by_kind.setdefault(key.partition(":")[0], []).append(key)
    for kind, keys in by_kind.items():
        together = kind not in TYPES and sum(tensors[key].numel() for key in keys) <= weights_at_once(tensors[keys[0]].device)
        yield from [keys] if together else ([key] for key in keys)


def encode_together(named: Sequence[tuple[str, Tensor]], kind: str, importance: Tensor | None, encoder: Encoder) -> Sequence[Tensor]:
    """What each of `named` tensors, by the names for errors, becomes as `kind`; several have rows of one width, and are encoded as one.

    Raises:
        UserError: weights that cannot be encoded, with the name of their tensor.
    """
    (name, tensor), *others = named
    try:
        if kind in TYPES:
            return [as_float(tensor, kind)]
        matrices = [each.flatten(0, -2) for _, each in named]
        coded = encoder(torch.cat(matrices) if others else matrices[0], kind, importance).split([len(matrix) for matrix in matrices])
        return [rows.view(*each.shape[:-1], -1) for rows, (_, each) in zip(coded, named, strict=True)]
    except UserError as error:
        if not others:
            raise UserError(f"{name}: {error}") from error
        for each in named:  # whichever it is fails alone, and is named
            encode_together([each], kind, importance, encoder)
        raise


def weights_at_once(device: torch.device) -> int:
    """Weights to encode, settle and turn into bytes at a time."""
    return AT_ONCE if device.type == "cpu" else ON_DEVICE


def as_float(tensor: Tensor, kind: str) -> Tensor:
    """The tensor as the float type `kind`; raises UserError where that cannot hold it."""
    stored = tensor.to(TYPES[kind])
    if not all_finite(stored):
        raise UserError(f"holds NaN, infinite values or values beyond {kind}'s range; check the checkpoint")
    return stored.contiguous()


@dataclass(frozen=True)
class Part:
    """A tensor of the file: its GGUF name, and whether its columns are the inputs of the layer that it comes from."""

    name: str
    tensor: Tensor
    reads_inputs: bool


def parts_of(name: str, tensor: Tensor, config: dict[str, Any]) -> list[Part]:
    """What the file holds of the tensor `name`: nothing, itself, or several parts.

    Raises:
        UserError: see gguf_names.
    """
    targets = gguf_names(name, config)
    if not targets:
        return []
    form = form_of(name, config)
    split = form.split(tensor, standard(config))
    return [Part(target, part, number not in form.unlike) for number, (target, part) in enumerate(zip(targets, split, strict=True))]


def shapes_of(name: str, shape: Sequence[int], config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """GGUF's names and shapes of what the file holds of a tensor `name` of this shape.

    Raises:
        UserError: see gguf_names.
    """
    parts = parts_of(name, torch.empty(tuple(shape), device="meta"), config)
    return {part.name: tuple(part.tensor.shape) for part in parts}


def reading_inputs(name: str, shape: Sequence[int], config: dict[str, Any]) -> list[str]:
    """GGUF's names for those parts of a tensor `name` whose columns are its layer's inputs; raises as gguf_names does."""
    return [part.name for part in parts_of(name, torch.empty(tuple(shape), device="meta"), config) if part.reads_inputs]


def form_of(name: str, config: dict[str, Any]) -> Form:
    """How the tensor `name` lies in the file."""
    found = ARCHITECTURES[config["model_type"]]
    forms = found.forms if expert_count(config) else (*found.dense, *found.forms)
    return next((form for form in forms if form.matches(name)), SAME)


def gguf_names(name: str, config: dict[str, Any]) -> list[str]:
    """GGUF's names for the parts of the tensor `name`; none for what GGUF derives itself.

    Raises:
        UserError: an unknown architecture, or a tensor without a place in it.
    """
    if name.endswith("rotary_emb.inv_freq") or (name.endswith(OUTPUTS) and config.get("tie_word_embeddings", False)):
        return []
    arch = architecture(config)
    known = name_map(arch, config["num_hidden_layers"])
    whole = EXPERT.sub(".experts.", alone(name))  # experts' matrices are one tensor
    found = []
    for part in form_of(name, config).names(whole):
        aliases = (part, part.replace(".block_sparse_moe.", ".mlp.").replace(".router.", ".gate."), part.removeprefix("transformer."))
        target = next((target for alias in aliases if (target := known.get_name(alias, try_suffixes=(".weight", ".bias")))), None)
        if target is None:
            raise UserError(f"{name} has no place in a GGUF file of architecture {gguf.MODEL_ARCH_NAMES[arch]}")
        found.append(target)
    return found


def alone(name: str) -> str:
    """A name in a model that reads images too, as the language model's own class has it."""
    return WRAPPED.sub("model.", name, count=1).removeprefix("language_model.")


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
def name_map(arch: gguf.MODEL_ARCH, layers: int) -> gguf.TensorNameMap:
    """gguf-py's names for an architecture's tensors."""
    return gguf.get_tensor_name_map(arch, layers)


def decode(stored: dict[str, Tensor]) -> Tensor:
    """The weights, float32, of one tensor that encode_tensors returned; in the form that it has there."""
    ((key, tensor),) = stored.items()
    kind = key.partition(":")[0]
    if tensor.is_floating_point():
        return tensor.float()
    return from_bytes(tensor.cpu(), kind)


def decode_plain(stored: dict[str, Tensor], name: str, config: dict[str, Any]) -> Tensor:
    """The plain tensor `name`, float32, that all of what encode_tensors returned of it stands for."""
    return form_of(name, config).join([decode({key: tensor}) for key, tensor in stored.items()], standard(config))
