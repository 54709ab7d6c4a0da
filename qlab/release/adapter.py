"""Low-rank adapters as peft stores them: opened with suspicion, and merged into the model that they were trained for."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qlab.formats.folder import COMPANIONS, finish_folder
from qlab.formats.half import half_precision
from qlab.models.loading import load
from qlab.models.opening import OpenedModel
from qlab.release.adapter_config import lora_config
from qlab.support.errors import UserError
from qlab.support.reading import read_json

TOKENIZER = tuple(pattern for pattern in COMPANIONS if not pattern.startswith("generation"))
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def read_adapter(folder: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Configuration and tensors of a LoRA adapter.

    Raises:
        UserError: something is missing or damaged, a value is not finite, or it is another kind of adapter.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder.name}/ has no {name}: expected an adapter as peft saves it, in safetensors")
    config = read_json(folder / CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{folder.name}/ is an adapter of type {str(kind)[:40]}: only LORA is merged here")
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder.name}/{WEIGHTS} is damaged ({error}); copy it again, or train it again") from error
    wanted = lora_config(config, tensors, folder)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise UserError(
                f"{folder.name}/{WEIGHTS} is damaged: {name} holds {tensor.dtype}, not floats; copy it again, or train it again"
            )
        if not torch.isfinite(tensor).all():
            raise UserError(f"{folder.name}/{WEIGHTS} is damaged: {name} holds values that are not finite; train it again")
    return wanted, tensors


def fingerprint(folder: Path) -> str:
    """A hash of the adapter's two files, and of the tokenizer and chat template that lie with them."""
    digest = hashlib.sha256()
    for file in [folder / CONFIG, folder / WEIGHTS, *own_tokenizer(folder)]:
        content = file.read_bytes()
        digest.update(f"{file.name}:{len(content)}:".encode() + content)
    return digest.hexdigest()[:16]


def merge(source: OpenedModel, folder: Path, out: Path) -> None:
    """Write `source` with the adapter in `folder` added to its weights, W + (alpha/rank)·B·A, into the empty folder `out`.

    Weights are BF16 where the model is marked so, since it may overflow FP16, and FP16 otherwise. QLoRA's adapter was trained on
    the model in NF4 and is merged into the unquantized one, as the paper does. The whole model is in memory, in FP32.

    Raises:
        UserError: the adapter is damaged or belongs to another model, or a merged weight leaves the range of that precision.
    """
    config, tensors = read_adapter(folder)
    config.inference_mode = True
    try:
        base = load(source)
        config.base_model_name_or_path = base.name_or_path  # peft warns of another name, and the adapter says how it was trained
        model = get_peft_model(base, config)
        found: Any = set_peft_model_state_dict(model, tensors)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:  # peft's and torch's, for layers that are not there or do not fit
        said = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()[:200]
        raise UserError(f"{folder.name}/ is no adapter of {source.name}: {said}") from error
    missing = [name for name in found.missing_keys if "lora_" in name or "modules_to_save" in name]
    if found.unexpected_keys or missing:
        raise UserError(f"{folder.name}/ is no adapter of {source.name}: {[*found.unexpected_keys, *missing][0]} has no counterpart")
    merged: Any = model.merge_and_unload()
    for name, parameter in merged.named_parameters():
        parameter.data = half_precision(name, parameter.data, source.trained_in)
    merged.config.dtype = source.trained_in
    merged.save_pretrained(out)
    finish_folder(source.folder, source.config, [], out, None)
    for file in own_tokenizer(folder):
        shutil.copyfile(file, out / file.name)


def own_tokenizer(folder: Path) -> list[Path]:
    """The files of tokenizer and chat template in an adapter's folder: who trained it wrote conversations down by these."""
    return sorted({file for pattern in TOKENIZER for file in folder.glob(pattern) if file.is_file()})
