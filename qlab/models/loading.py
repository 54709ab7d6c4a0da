"""An opened model as a transformers model that computes, and its tokenizer.

Whatever form weights are stored in, they are decoded to plain ones, a tensor at a time: quality is then measured by the same
arithmetic for every format, on any machine. How fast a runtime serves them is another question (qlab.evaluate.speed).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from qlab.formats.bitsandbytes import leave_unpacked
from qlab.formats.compressed_tensors.rounding import round_inputs
from qlab.models.checkpoint import finite
from qlab.models.configuration import quantization_of
from qlab.models.experts import separate_experts
from qlab.models.layout import cannot_open, class_of, compute_buffers, empty_model
from qlab.models.opening import COMPUTED, OpenedModel
from qlab.models.resting.choosing import IN_MEMORY, WHOLE
from qlab.models.resting.layers import at_rest, materialize, rest
from qlab.models.texts.tokenizer_trial import check_bounded
from qlab.support.errors import UserError
from qlab.support.reading import read_json

GENERATION = "generation_config.json"
MARKS = ("bos_token_id", "eos_token_id", "pad_token_id")
SPARE = 2  # times as many weights as are stored that a model may have: families share some in ways of their own

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TRIAL = "The word 12,345 éçß 漢字 😀\n\n\tdef f(x):  return x▁\x00"


def load(
    source: OpenedModel, dtype: torch.dtype = torch.float32, device: str = "cpu", native: bool = False, apart: bool = False,
    holding: str = WHOLE,
) -> PreTrainedModel:  # fmt: skip
    """The model of a folder or artifact, in evaluation mode, its weights in `dtype` on `device`.

    Quantized checkpoints become plain weights, and round activations where they ask their runtime to, unless `native`: a bitsandbytes one
    then stays in four bits, as its runtime keeps it. `apart`: each expert's layers are linear layers of their own (qlab.models.experts),
    which transformers holds as one tensor. Such a model may be at rest (`holding`, see qlab.models.resting.choosing), and computes in FP32.

    Raises:
        UserError: a format qlab does not read, an architecture transformers does not know, or weights that are not all there.
    """
    return load_and_rest(source, dtype, device, native, apart, holding)[0]


def load_and_rest(
    source: OpenedModel, dtype: torch.dtype = torch.float32, device: str = "cpu", native: bool = False, apart: bool = False,
    holding: str = WHOLE,
) -> tuple[PreTrainedModel, list[str]]:  # fmt: skip
    """The model as `load` has it, and the names of tensors in its checkpoint that it does not have and that are left out.

    Raises:
        UserError: as `load`.
    """
    quantization = quantization_of(source.config)
    if native and quantization.get("quant_method") == "bitsandbytes":
        model, rest = opened_by_transformers(source, dtype, device)
        leave_unpacked(model)
    elif apart or source.checkpoint.quantized or all(name in source.checkpoint.shapes for name in source.layout.shapes):
        model, rest = filled(source, dtype, device, apart, holding)
    else:  # stored under other names than the architecture's, which transformers translates for the families that it knows
        model, rest = opened_by_transformers(source, dtype, device)
    if quantization.get("quant_method") == "compressed-tensors":
        layers = (name.removesuffix(".weight") for name in source.checkpoint.quantized_names())
        round_inputs(model, quantization, layers, source.name, source.checkpoint.input_scale)
    file = source.folder / GENERATION
    said = read_json(file) if file.is_file() else model.generation_config.to_dict()
    model.generation_config = marks_alone(said, source.name)
    return model.eval() if at_rest(model) else model.eval().to(device), rest


def marks_alone(settings: Mapping[str, Any], name: str) -> GenerationConfig:
    """Of how a model is meant to write the tokens that begin and end a text alone: all answers here are the likeliest tokens, and other
    settings (penalties, beams by the million, ways of writing whose code lies on the hub) would make something else of them.

    Raises:
        UserError: such a token is no number, or no list of numbers.
    """
    marks = {}
    for key in MARKS:
        value = settings.get(key)
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise UserError(f"{key} of {name} is {str(value)[:60]!r}: expected the number of a token, or a list; mend {GENERATION}")
        marks[key] = value
    return GenerationConfig(**marks)


def filled(
    source: OpenedModel, dtype: torch.dtype, device: str, apart: bool = False, holding: str = WHOLE
) -> tuple[PreTrainedModel, list[str]]:
    """The model with every tensor read from the checkpoint, one at a time; and the names of those that are left out. `apart`, `holding`:
    see `load`.

    Raises:
        UserError: the checkpoint is not complete, or does not fit its configuration.
    """
    left = source.check_complete()
    model: Any = empty_model(source.configuration, source.name)
    if apart:
        separate_experts(model)
    model = in_dtype(model, dtype)
    if apart and holding != WHOLE:
        model.tie_weights()  # while all is on the meta device: what is tied must be one tensor before it rests
        rest(model, {name: source.checkpoint.dtype_of(name) for name in source.layout.shapes}, device)
        materialize(model, device, holding == IN_MEMORY)
    else:
        model = model.to_empty(device=device)
    compute_buffers(model, model.modules(), device)
    if not at_rest(model):
        model.tie_weights()
    state, pieces = model.state_dict(), {} if apart else source.layout.pieces
    with torch.no_grad():
        for name in source.layout.shapes:
            place = pieces[name].of(state[pieces[name].fused]) if name in pieces else state[name]
            place.copy_(source.checkpoint.read(name))
    return model, left


def in_dtype(model: Any, dtype: torch.dtype) -> Any:
    """The model with its real numbers in `dtype`; complex ones, of which Llama 4's image encoder makes rotations, stay complex."""
    return model._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def opened_by_transformers(source: OpenedModel, dtype: torch.dtype, device: str) -> tuple[PreTrainedModel, list[str]]:
    """The model as transformers loads it, from safetensors alone and without code of the folder, every weight there; and the names of
    tensors that it found no place for.

    Raises:
        UserError: transformers cannot open it, or found weights missing or of another shape, which it would fill with random numbers,
            or not finite.
    """
    numbers, stored = source.layout.weights, sum(map(prod, source.checkpoint.shapes.values()))
    if numbers > SPARE * stored:  # transformers would take memory for all of them first
        raise UserError(
            f"the configuration of {source.name} asks for {numbers:,} weights, its checkpoint holds {stored:,}: they are of two models"
        )
    try:
        found: Any = class_of(source.configuration, source.name).from_pretrained(
            source.folder, dtype=dtype, device_map=device, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # it raises what it likes of what it does not foresee
        raise UserError(cannot_open(source.name, error)) from error
    model, report = found
    lost = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if lost:  # a tied head is told beside the embedding that it is tied to
        raise UserError(source.lacking([name for name in lost if name in source.layout.shapes] or lost))
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            finite(name, tensor)
    return model, sorted(name for name in map(str, report["unexpected_keys"]) if not COMPUTED.fullmatch(name))


def load_tokenizer(source: OpenedModel) -> PreTrainedTokenizerBase:
    """The tokenizer that lies with the model: tokenizer.json to the letter, where transformers would bring its own rules for a family.

    Raises:
        UserError: there is none, it is damaged, or it cannot cut a text.
    """
    try:
        with without_panics():
            folder = source.folder  # of a GGUF file, made of its header
            for name in TOKENIZER_FILES:
                if (folder / name).exists():
                    read_json(folder / name)
            if (folder / TOKENIZER_FILES[0]).exists():
                check_bounded(folder / TOKENIZER_FILES[0])
            family: Any = PreTrainedTokenizerFast if (folder / TOKENIZER_FILES[0]).exists() else AutoTokenizer
            found: PreTrainedTokenizerBase = family.from_pretrained(folder, trust_remote_code=False)
            found.name_or_path = source.name  # the folder may be a temporary one
            tried(found)
            return found
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception
        said = " ".join(str(error).split())[:160]
        raise UserError(
            f"{source.name}: there is no tokenizer that can be read and used ({said}); copy tokenizer.json and tokenizer_config.json "
            "of the original again"
        ) from error


def tried(tokenizer: PreTrainedTokenizerBase) -> None:
    """Cut a text of many kinds of characters and put it together again: a damaged tokenizer fails here, not within the work; so does one
    that cuts a text by chance, whose figures would be other ones each time."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if chance := getattr(getattr(backend, "model", None), "dropout", None):
        raise ValueError(
            f"it drops merges by chance, {chance:g} of them, which is for training: set model.dropout to null in tokenizer.json"
        )
    for special in (False, True):
        tokens = tokenizer.encode(TRIAL, add_special_tokens=special)
        if not isinstance(tokenizer.decode(tokens), str):
            raise TypeError("its tokens make no text")


@contextmanager
def without_panics() -> Iterator[None]:
    """Turn a panic of the tokenizers library, which no `except Exception` catches, into a RuntimeError, without its report on the terminal.

    Raises:
        RuntimeError: the library panicked.
    """
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(str(error)) from error
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
