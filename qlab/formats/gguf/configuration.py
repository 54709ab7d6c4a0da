"""From a GGUF header back to a Hugging Face configuration: the inverse of metadata.py."""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from qlab.formats.gguf import metadata
from qlab.formats.gguf import settings as rows
from qlab.formats.gguf.architectures import ARCHITECTURES, Architecture
from qlab.formats.gguf.header import Setting
from qlab.formats.gguf.settings import ATTENTION, LLM, ROPE, Config, Known, NotRead
from qlab.support.errors import UserError
from qlab.support.reading import LAYERS, MOST

READ = tuple(dict.fromkeys(gguf.MODEL_ARCH_NAMES[found.arch] for found in ARCHITECTURES.values()))
NEAR = 1e-5  # of Llama 3's factors, which writers compute in float32
ROUNDED = 1e-6  # a header's floats are float32
UNTOLD = {key.removeprefix("{arch}."): 1 for key in (LLM.EXPERT_GROUP_COUNT, LLM.EXPERT_GROUP_USED_COUNT)}  # one group is none
SPECIAL = ("bos", "eos", "padding")
TOLD = ("architectures", "model_type", "tie_word_embeddings", "dtype", "rope_parameters", "bos_token_id", "eos_token_id", "pad_token_id")


def model_config(
    settings: Mapping[str, Setting], arrays: Mapping[str, list[Any]], shapes: Mapping[str, tuple[int, ...]], rope_factors: Tensor | None
) -> Config:
    """config.json of the model in a GGUF file, in FP16.

    What the writer makes of it is held against the header: a setting that comes out otherwise is one that qlab does not read.

    Args:
        settings: of the header, and `arrays`, those of numbers at least.
        shapes: of its tensors, by their GGUF names.
        rope_factors: rope_freqs.weight, what divides each rotary frequency, float32 [head size / 2]; None to leave them out.

    Raises:
        UserError: an architecture that qlab does not read, or a header that lacks what it needs.
    """
    kind = str(settings.get("general.architecture"))
    known = Known(settings, arrays, shapes, kind)
    family = family_of(known)
    found = ARCHITECTURES[family]
    embedding = shapes.get("token_embd.weight")
    if embedding is None or len(embedding) != 2:
        raise UserError("the GGUF file has no token_embd.weight: it is not a whole language model (a part, a projector or an adapter)")
    usual: Config = {
        row.name: known.whole(row.key, most=LAYERS if row.key == LLM.BLOCK_COUNT else MOST)
        for row in rows.SIZES
        if row.key in known or row.key != ATTENTION.HEAD_COUNT_KV
    }
    eps = rows.LAYER_NORM if rows.LAYER_NORM.key in known and rows.RMS.key not in known else rows.RMS
    usual[eps.name] = known.decimal(eps.key)
    of_experts = rows.EXPERTS if any("_exps." in name for name in shapes) else ()
    usual |= {row.name: known.value(row) for row in (*of_experts, *found.rows) if row.key in known}
    usual |= dict(found.fixed) | {name: tensor in shapes for name, tensor in found.flags.items()}
    usual_width = usual["hidden_size"] // usual["num_attention_heads"]
    usual |= {"vocab_size": embedding[0], "head_dim": known.whole(ATTENTION.KEY_LENGTH, usual_width)}
    if found.activations[0] == "silu":
        usual["hidden_act"] = "silu"
    for computed in found.computed:
        usual |= computed.back(known)
    config: Config = {found.own.get(name, name): value for name, value in usual.items()}
    config |= {
        "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]], "model_type": family, "dtype": "float16",
        "tie_word_embeddings": "output.weight" not in shapes,
    }  # fmt: skip
    if found.turned:
        config["rope_parameters"] = rope_parameters(known, found, usual["head_dim"], rope_factors)
    for name in SPECIAL:
        if (token := settings.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            if type(token) is not int or not 0 <= token <= MOST:
                raise UserError(f"tokenizer.ggml.{name}_token_id in the GGUF file's header is {str(token)[:40]}: expected a token's number")
            config[f"{'pad' if name == 'padding' else name}_token_id"] = token
    check_again(config, known)
    usually = CONFIG_MAPPING[family]()
    words = {
        *TOLD,
        *found.own.values(),
        *usually.to_dict(),
        *usually.attribute_map,
        *(() if usual["head_dim"] == usual_width else ("head_dim",)),
    }
    return {name: value for name, value in config.items() if name in words}


def family_of(known: Known) -> str:
    """The model type of a file.

    Raises:
        UserError: an architecture that qlab does not read.
    """
    if known.kind not in READ:
        raise NotRead(
            f"the GGUF file holds a {known.kind} model; qlab reads those of {', '.join(READ)}: give it the Hugging Face model instead"
        )
    candidates = {name: found for name, found in ARCHITECTURES.items() if gguf.MODEL_ARCH_NAMES[found.arch] == known.kind}
    for name, found in candidates.items():
        told_by = found.told_by.replace("{last}", str(known.whole(LLM.BLOCK_COUNT, most=LAYERS) - 1))
        if told_by and (told_by in known.shapes or known.settings.get(known.full(told_by))):
            return name
    name, found = next((name, found) for name, found in candidates.items() if not found.told_by)
    return found.read_as or name


def check_again(config: Config, known: Known) -> None:
    """See that a configuration says what the header does, as far as qlab knows the header's words.

    Raises:
        UserError: it says something else.
    """
    again = {key.split(".", 1)[1]: value for key, value in metadata.settings_of(config).items() if not key.endswith(".vocab_size")}
    words = {row.key for found in ARCHITECTURES.values() for row in (*found.rows, *rows.SIZES, *rows.EXPERTS)}
    for name in {*again, *(key.split(".", 1)[1] for key in words)}:
        value = known.settings.get(known.full(name), known.arrays.get(known.full(name)))
        ours = again.get(name)
        same = value == ours or (isinstance(value, float) and isinstance(ours, float) and isclose(value, ours, rel_tol=ROUNDED))
        if value is not None and not same and (value or ours) and not (ours is None and UNTOLD.get(name) == value):
            raise NotRead(
                f"{known.full(name)} in the GGUF file's header is {str(value)[:40]}, in a {config['model_type']} model that qlab reads "
                f"{'there is none' if ours is None else f'it is {str(ours)[:40]}'}: give it the Hugging Face model instead"
            )


def check_sizes(settings: Mapping[str, Setting], kind: str) -> None:
    """See that the sizes of an architecture are there, and sizes, before transformers computes with them or fills in its own.

    Raises:
        UserError: one is not.
    """
    known = Known(settings, {}, {}, kind)
    for name in ("block_count", "embedding_length"):
        known.whole(name)
    for name, value in settings.items():
        if name.startswith(f"{kind}.") and type(value) is int:
            inner = name.removeprefix(f"{kind}.")
            known.whole(inner, least=0, most=LAYERS if inner == "block_count" else MOST)


def rope_parameters(known: Known, found: Architecture, width: int, factors: Tensor | None) -> dict[str, Any]:
    """transformers' description of the rotary embedding: one, or one for each kind of attention.

    Raises:
        UserError: a kind that qlab does not read.
    """
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": known.decimal(ROPE.FREQ_BASE, 10000.0)}
    if found.partly and (turned := known.whole(ROPE.DIMENSION_COUNT, width)) != width:
        rope["partial_rotary_factor"] = turned / width
    whole = rope | scaling(known, found, rope, width, factors)
    if not found.kinds:
        return whole
    local = known.decimal(ROPE.FREQ_BASE_SWA, rope["rope_theta"])
    return {"full_attention": whole, "sliding_attention": {"rope_type": "default", "rope_theta": local}}


def scaling(known: Known, found: Architecture, rope: dict[str, Any], width: int, factors: Tensor | None) -> dict[str, Any]:
    """How a rotary embedding is stretched.

    Raises:
        UserError: in a way that qlab does not read.
    """
    kind = known.text(ROPE.SCALING_TYPE, "linear" if "rope.scale_linear" in known else "none")
    if factors is not None:
        if kind != "none":
            raise NotRead(f"the GGUF file has rotary factors (rope_freqs) and {kind} scaling as well, which qlab does not read")
        return llama3_parameters(rope, width, factors)
    if kind == "none":
        return {}
    factor = known.decimal(ROPE.SCALING_FACTOR, known.decimal("rope.scale_linear", 1.0))
    if kind == gguf.RopeScalingType.LINEAR.value:
        return {"rope_type": "linear", "factor": factor}
    if kind == gguf.RopeScalingType.YARN.value:
        length = known.whole(ROPE.SCALING_ORIG_CTX_LEN, known.whole(LLM.CONTEXT_LENGTH))
        stretched = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": length}
        stretched |= {name: known.decimal(key) for name, key in metadata.YARN.items() if key in known}
        if found.log_multiplier and ROPE.SCALING_YARN_LOG_MUL in known:
            scale = float(f"{known.decimal(ROPE.SCALING_YARN_LOG_MUL) / found.log_multiplier:.6g}")
            stretched |= {"mscale": scale, "mscale_all_dim": scale}
        return stretched | dict(found.rope)
    raise NotRead(f"the GGUF file's rotary embedding is scaled by {kind}, which qlab does not read; it reads linear, yarn and Llama 3's")


def llama3_parameters(rope: dict[str, Any], width: int, factors: Tensor) -> dict[str, Any]:
    """The rotary embedding whose frequencies are divided by `factors`: Llama 3's kind where some limits give them, else their list.

    GGUF keeps the factors and not what they were computed from: a factor for long waves, and two limits between which 1/factor grows
    linearly with the frequency. Two factors between the limits tell these; the published ones are tried first. What no limits give
    becomes a "longrope" whose short and long factors are these.
    """
    for guess in (published(factors), solved(rope["rope_theta"], width, factors)):
        if guess is None:
            continue
        found = rope | {"rope_type": "llama3"} | guess
        again = metadata.rope_factors({"head_dim": width, "rope_parameters": found})
        if again is not None and torch.allclose(again, factors.float(), rtol=NEAR, atol=0):
            return found
    listed = [float(str(np.float32(factor))) for factor in factors.tolist()]
    return rope | {
        "rope_type": "longrope", "short_factor": listed, "long_factor": listed, "attention_factor": 1.0, "factor": 1.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip


def published(factors: Tensor) -> dict[str, Any]:
    """The limits of Llama 3.1, 3.2 and 3.3."""
    limits = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return limits | {"factor": float(str(np.float32(factors.max())))}


def solved(theta: float, width: int, factors: Tensor) -> dict[str, Any] | None:
    """The limits that two factors between them tell, the lower one taken as 1; None where there are no two."""
    largest = float(str(np.float32(factors.max())))
    kept = 1 / factors.double()
    between = ((factors > 1) & (factors < factors.max())).nonzero().flatten()
    if len(between) < 2:
        return None
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width) / (2 * torch.pi)
    smooth = (kept - 1 / largest) / (1 - 1 / largest)  # = (length · frequency − low) / (high − low)
    first, last = int(between[0]), int(between[-1])
    slope = float((smooth[first] - smooth[last]) / (frequencies[first] - frequencies[last]))
    offset = slope * float(frequencies[first]) - float(smooth[first])
    if slope <= 0 or offset <= 0:
        return None
    high = 1 + 1 / offset
    return {
        "factor": largest, "low_freq_factor": 1.0, "high_freq_factor": float(f"{high:.4g}"),
        "original_max_position_embeddings": round(slope * (high - 1)),
    }  # fmt: skip
