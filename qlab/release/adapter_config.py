"""What an adapter's configuration may say: its form, and bounds that its own weights set, before anything is allocated.

peft reads such a file as a program reads its own: names of layers are regular expressions to it, which may take for ever, and some options
load other modules. So what is handed to it holds the options below alone, each of a type and a size that is expected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from peft import LoraConfig
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from torch import Tensor

from qlab.support.errors import UserError

NAME = r"^[\w.-]+$"  # of a layer, or the end of one; as a regular expression it has no repetitions
MANY = 10_000  # names or numbers of layers
Name = Annotated[str, StringConstraints(pattern=NAME, max_length=300)]
Names = Annotated[list[Name], Field(max_length=MANY)]
# What of peft's options says where an adapter comes from, or how it was trained, and nothing of what it adds.
OF_TRAINING = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "inference_mode", "lora_dropout", "megatron_core",
    "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip


class AdapterConfig(BaseModel):
    """The options of peft's LoraConfig that decide what is added where."""

    model_config = ConfigDict(strict=True, extra="ignore")
    r: int = Field(ge=1, le=65536)
    lora_alpha: float = Field(gt=0, le=1e6)
    target_modules: Literal["all-linear"] | Names
    modules_to_save: Names | None = None
    exclude_modules: Names | None = None
    rank_pattern: dict[Name, Annotated[int, Field(ge=1, le=65536)]] = Field(default={}, max_length=MANY)
    alpha_pattern: dict[Name, Annotated[float, Field(gt=0, le=1e6)]] = Field(default={}, max_length=MANY)
    layers_to_transform: Annotated[list[int], Field(max_length=MANY)] | int | None = None
    layers_pattern: Names | Name | None = None
    fan_in_fan_out: bool = False
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    bias: Literal["none", "all", "lora_only"] = "none"
    # The others leave the model's weights as they are, or, as these two, change them by what can be computed again.
    init_lora_weights: bool | Literal["gaussian", "orthogonal", "eva", "pissa", "olora"] = True


def lora_config(config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> LoraConfig:
    """A configuration for peft, with the options of AdapterConfig alone.

    Raises:
        UserError: it is not one of a LoRA adapter, or not of these tensors; the message names the option.
    """
    shown = f"{folder.name}/adapter_config.json"
    try:
        found = AdapterConfig.model_validate(dict(config))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:80]
        raise UserError(
            f"{shown}: {where}: {first['msg'][:120]}; expected a LoRA adapter as peft saves it, with target_modules as a list of names"
        ) from error
    defaults = LoraConfig().to_dict()
    for option in sorted(defaults.keys() - AdapterConfig.model_fields.keys() - OF_TRAINING):
        if (value := config.get(option)) and value != defaults[option]:
            raise UserError(
                f"{shown}: {option} is {str(value)[:60]!r}, and adapters with this option are not merged here; merge it by peft"
            )
    check_against(found, tensors, folder)
    if found.init_lora_weights not in ("pissa", "olora"):  # what the adapter began with is in its weights
        found.init_lora_weights = True
    return LoraConfig(**found.model_dump())


def check_against(found: AdapterConfig, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """See that the weights have the rank and the layers that the configuration says."""
    stored = max((tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name and tensor.dim()), default=0)
    if (largest := max(found.rank_pattern.values(), default=found.r)) > stored or (found.r > stored and not found.rank_pattern):
        raise UserError(f"{folder.name}/adapter_config.json says rank {largest}, and the weights have {stored} at most; copy both again")
    for name in found.modules_to_save or []:
        if not any(re.search(rf"(^|\.){re.escape(name)}\.(?!lora_)", key) for key in tensors):
            raise UserError(f"{folder.name}/ says that {name} was saved with the adapter, and its weights lack it; train it again")
