"""config.json as everything here reads it: its sizes are seen to be sizes before a library computes with them.

transformers checks some types and no bounds: a configuration with a billion decoder blocks would keep it busy for hours, and one
without attention heads end in a division by zero. Families call the same size by different names; what stands under none of these is
left to transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictBool, ValidationError, model_validator

from qlab.support.errors import UserError
from qlab.support.reading import LAYERS, MOST, read_json

EXPERTS = 1 << 14  # of a block; and labels, for which transformers makes names
Size = Annotated[int, Field(strict=True, ge=1, le=MOST)]
Sizes = Size | Annotated[list[Annotated[int, Field(strict=True, ge=0, le=MOST)]], Field(max_length=LAYERS)]  # one a block, in some families
Layers = Annotated[int, Field(strict=True, ge=1, le=LAYERS)]
Experts = Annotated[int, Field(strict=True, ge=0, le=EXPERTS)]
Epsilon = Annotated[float, Field(strict=True, gt=0, lt=1)]


class Configuration(BaseModel):
    """The part of a config.json that decides what is computed, and how much of it."""

    model_config = ConfigDict(extra="allow")
    model_type: Annotated[str, Field(strict=True)] | None = None
    vocab_size: Size | None = None
    max_position_embeddings: Size | None = None
    hidden_size: Size | None = None
    intermediate_size: Sizes | None = None
    num_hidden_layers: Layers | None = None
    num_attention_heads: Sizes | None = None
    num_key_value_heads: Sizes | None = None
    head_dim: Size | None = None
    n_positions: Size | None = None
    n_embd: Size | None = None
    n_inner: Size | None = None
    n_layer: Layers | None = None
    n_layers: Layers | None = None
    n_head: Sizes | None = None
    num_layers: Layers | None = None
    d_model: Size | None = None
    ffn_dim: Size | None = None
    num_experts: Experts | None = None
    num_local_experts: Experts | None = None
    n_routed_experts: Experts | None = None
    num_labels: Experts | None = None
    rms_norm_eps: Epsilon | None = None
    layer_norm_eps: Epsilon | None = None
    layer_norm_epsilon: Epsilon | None = None
    rope_theta: Annotated[FiniteFloat, Field(gt=0)] | None = None
    tie_word_embeddings: StrictBool | None = None
    quantization_config: dict[str, Any] | None = None
    text_config: Configuration | None = None
    configuration_files: None = None  # transformers would read another file in this one's place

    @model_validator(mode="after")
    def heads_share_the_width(self) -> Configuration:
        """Where nothing says how wide a head is, the heads share the width of the hidden states."""
        width, heads = self.hidden_size, self.num_attention_heads
        if width and isinstance(heads, int) and self.head_dim is None and heads > width:
            raise ValueError(f"{heads} attention heads for a width of {width}")
        return self


def checked(config: Mapping[str, Any], name: str) -> None:
    """See that the sizes in the configuration of the model `name` are sizes.

    Raises:
        UserError: one is not.
    """
    try:
        Configuration.model_validate(config)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"] if str(part) in config or str(part).isidentifier()) or "it"
        raise UserError(
            f"the configuration of {name} makes no sense: {where} is {repr(first['input'])[:40]} ({first['msg'][:100]}); download or copy "
            "config.json again"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json in a folder.

    Raises:
        UserError: it cannot be read, is damaged, or holds a size that is none.
    """
    config = read_json(folder / "config.json")
    checked(config, folder.name)
    return config


def quantization_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """`quantization_config` of a configuration; empty where nothing is quantized."""
    return config.get("quantization_config") or {}
