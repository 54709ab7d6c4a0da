"""What an adapter's configuration may say: its form, and bounds that its own weights set, before anything is allocated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from qlab.support.errors import UserError

NAME = r"^[\w.-]{1,300}$"  # of a layer, or the end of one


class AdapterConfig(BaseModel):
    """The options of peft's LoraConfig that decide what is added where. Names of layers are names, not expressions, which peft would
    try on every layer, however long one takes."""

    model_config = ConfigDict(strict=True, extra="ignore")
    peft_type: Literal["LORA"]
    r: int = Field(ge=1, le=65536)
    lora_alpha: float = Field(gt=0, le=1e6)
    lora_dropout: float = Field(default=0, ge=0, le=1)
    target_modules: Literal["all-linear"] | list[str]
    modules_to_save: list[str] | None = None
    exclude_modules: list[str] | None = None
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    layer_replication: None = None
    megatron_config: None = None


def check_config(config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> None:
    """See that a configuration is one of a LoRA adapter, and of these tensors.

    Raises:
        UserError: it is not; the message names the option.
    """
    try:
        found = AdapterConfig.model_validate(dict(config))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UserError(
            f"{folder.name}/adapter_config.json: {'.'.join(map(str, first['loc']))[:80]}: {first['msg'][:120]}; expected a LoRA adapter as "
            "peft saves it, with target_modules as a list of names"
        ) from error
    lists = (found.target_modules, found.modules_to_save, found.exclude_modules)
    names = [name for listed in lists if isinstance(listed, list) for name in listed] + [*found.rank_pattern, *found.alpha_pattern]
    if wrong := [name for name in names if not re.fullmatch(NAME, name)]:
        raise UserError(f"{folder.name}/adapter_config.json: {wrong[0][:80]!r} is no name of a layer; expected such as q_proj")
    stored = max((tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name and tensor.dim()), default=0)
    if (largest := max(found.rank_pattern.values(), default=found.r)) > stored or (found.r > stored and not found.rank_pattern):
        raise UserError(f"{folder.name}/adapter_config.json says rank {largest}, and the weights have {stored} at most; copy both again")
    for name in found.modules_to_save or []:
        if not any(f".{name}." in f".{key}" for key in tensors):
            raise UserError(f"{folder.name}/ says that {name} was saved with the adapter, and its weights lack it; train it again")
