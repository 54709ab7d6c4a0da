"""An opened model as a transformers model that computes, and its tokenizer.

Whatever form weights are stored in, they are decoded to plain ones, a tensor at a time: quality is then measured by the same
arithmetic for every format, on any machine. How fast a runtime serves them is another question (qlab.evaluate.speed).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from qlab.formats.bitsandbytes import leave_unpacked
from qlab.models.checkpoint import finite
from qlab.models.configuration import quantization_of
from qlab.models.layout import cannot_open, compute_buffers, empty_model
from qlab.models.opening import OpenedModel
from qlab.support.errors import UserError
from qlab.support.reading import read_json

GENERATION = "generation_config.json"


def load(source: OpenedModel, dtype: torch.dtype = torch.float32, device: str = "cpu", native: bool = False) -> PreTrainedModel:
    """The model of a folder or artifact, in evaluation mode, its weights in `dtype` on `device`.

    Quantized checkpoints become plain weights, unless `native`: a bitsandbytes one then stays in four bits, as its runtime keeps it.

    Raises:
        UserError: a format qlab does not read, an architecture transformers does not know, or weights that are not all there.
    """
    quantization = quantization_of(source.config)
    if native and quantization.get("quant_method") == "bitsandbytes":
        model = opened_by_transformers(source, dtype, device)
        leave_unpacked(model)
    elif source.checkpoint.quantized or all(name in source.checkpoint.shapes for name in source.layout.shapes):
        model = filled(source, dtype, device)
    else:  # stored under other names than the architecture's, which transformers translates for the families that it knows
        model = opened_by_transformers(source, dtype, device)
    if (file := source.folder / GENERATION).is_file():
        model.generation_config = generation_config(file)
    return model.eval().to(device)


def generation_config(file: Path) -> GenerationConfig:
    """How the model is meant to write.

    Raises:
        UserError: the file is damaged, or holds what transformers does not take.
    """
    settings = read_json(file)
    try:
        return GenerationConfig.from_dict(settings)
    except Exception as error:  # it raises what it likes of what it does not foresee
        raise UserError(cannot_open(f"{file.parent.name}/{file.name}", error)) from error


def filled(source: OpenedModel, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The model with every tensor read from the checkpoint, one at a time.

    Raises:
        UserError: the checkpoint is not complete, or does not fit its configuration.
    """
    source.check_complete()
    model: Any = empty_model(source.configuration, source.name)
    model = model.to(dtype).to_empty(device=device)
    compute_buffers(model, model.modules(), device)
    model.tie_weights()
    state = model.state_dict()
    with torch.no_grad():
        for name in source.layout.shapes:
            state[name].copy_(source.checkpoint.read(name))
    return model


def opened_by_transformers(source: OpenedModel, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The model as transformers loads it, from safetensors alone and without code of the folder, every weight there.

    Raises:
        UserError: transformers cannot open it, or found weights missing or of another shape, which it would fill with random numbers, or not
            finite.
    """
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(
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
    return model


def load_tokenizer(source: OpenedModel) -> PreTrainedTokenizerBase:
    """The tokenizer that lies with the model: tokenizer.json to the letter, where transformers would bring its own rules for a family.

    Raises:
        UserError: there is none, or it is damaged.
    """
    file = source.folder / "tokenizer.json"
    try:
        if file.exists():
            return PreTrainedTokenizerFast.from_pretrained(source.folder, trust_remote_code=False)
        return AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exception
        if file.is_file() and file.read_bytes()[:40].startswith(b"version https://git-lfs"):
            raise UserError(f"{source.name}/tokenizer.json is a pointer of git-lfs, not the file: run 'git lfs pull' there") from error
        what = "tokenizer.json is damaged" if file.exists() else "there is no tokenizer that can be read"
        said = " ".join(str(error).split())[:160]
        raise UserError(f"{source.name}: {what} ({said}); copy tokenizer.json and tokenizer_config.json of the original again") from error
