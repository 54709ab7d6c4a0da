"""What compressed-tensors says of a checkpoint: which layers are quantized and how, by the configuration's `quantization_config`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from qlab.formats.packing import WIDTHS
from qlab.formats.patterns import WHY, fits
from qlab.support.errors import UserError

PACKED, NAIVE = "pack-quantized", ("int-quantized", "float-quantized", "naive-quantized")
STRATEGIES = ("tensor", "channel", "group", "block")
Whole = Annotated[int, Field(ge=1, le=1 << 26)]


class Numbers(BaseModel):
    """How numbers of a group's layers are rounded."""

    model_config = ConfigDict(strict=True)
    num_bits: int
    type: str = "int"
    symmetric: bool = True
    strategy: str | None = None
    group_size: Whole | None = None

    @field_validator("group_size", mode="before")
    @classmethod
    def none_by_minus_one(cls, given: Any) -> Any:
        """-1 stands for a group a row."""
        return None if given == -1 else given


class Weights(Numbers):
    """How its weights are."""

    actorder: str | bool | None = None
    block_structure: Annotated[list[Whole], Field(min_length=2, max_length=2)] | None = None


class Activations(Numbers):
    """How their inputs are."""

    dynamic: bool | str = False


class Group(BaseModel):
    """Layers by their names, patterns ("re:…") or classes, and how their weights are quantized."""

    model_config = ConfigDict(strict=True)
    targets: list[str] = []
    weights: Weights | None = None
    input_activations: Activations | None = None
    format: str | None = None


class Quantization(BaseModel):
    """The configuration's `quantization_config`."""

    model_config = ConfigDict(strict=True)
    config_groups: dict[str, Group] = {}
    format: str = PACKED
    sparsity_config: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None


def scheme_in(quantization: dict[str, Any]) -> Quantization:
    """The configuration, all of which qlab reads.

    Raises:
        UserError: it is damaged, or `decode` would read it wrongly.
    """
    try:
        found = Quantization.model_validate(quantization)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:80]
        raise UserError(f"the quantization_config is damaged ({where}: {first['msg'][:100]}): {WHY}") from error
    groups = list(found.config_groups.values())
    layouts = {found.format, *(group.format for group in groups if group.format)}
    if unknown := sorted(layouts - {PACKED, *NAIVE, "dense", "mixed-precision"}):
        raise UserError(f"the checkpoint is compressed-tensors {unknown[0][:40]}; qlab reads {PACKED}, {', '.join(NAIVE)}: {WHY}")
    if (sparsity := (found.sparsity_config or {}).get("format", "dense")) != "dense":
        raise UserError(f"the checkpoint is compressed-tensors with the sparsity format {sparsity}, which qlab does not read: {WHY}")
    if (found.transform_config or {}).get("config_groups"):
        raise UserError(f"the checkpoint turns activations before its layers (transform_config), which qlab does not do: {WHY}")
    for weights in [group.weights for group in groups if group.weights]:
        if weights.strategy not in STRATEGIES:
            readable = ", ".join(STRATEGIES)
            raise UserError(f"the checkpoint is compressed-tensors of strategy {weights.strategy}; qlab reads {readable}: {WHY}")
        if weights.num_bits not in WIDTHS:
            readable = ", ".join(map(str, WIDTHS))
            raise UserError(f"the checkpoint is compressed-tensors of {weights.num_bits} bits; qlab reads {readable}: {WHY}")
        if (weights.strategy == "group") != (weights.group_size is not None) or (weights.strategy == "block") != bool(
            weights.block_structure
        ):
            raise UserError(f"the quantization_config says strategy {weights.strategy}, and not how large its groups or blocks are: {WHY}")
    return found


def describe(quantization: dict[str, Any]) -> str:
    """The format in a few words, such as "compressed-tensors, 4-bit int in groups of 128"."""
    kinds: dict[str, None] = {}
    for group in scheme_in(quantization).config_groups.values():
        if weights := group.weights:
            where = {"group": f"in groups of {weights.group_size}", "channel": "a scale a row", "tensor": "a scale a tensor"}
            kinds[f"{weights.num_bits}-bit {weights.type} {where.get(str(weights.strategy), 'in blocks')}"] = None
    return ", ".join(["compressed-tensors", *kinds])


def rounds_inputs(quantization: dict[str, Any]) -> bool:
    """Whether a `quantization_config`, of any format, is one of compressed-tensors that rounds activations.

    Raises:
        UserError: as scheme_in.
    """
    if quantization.get("quant_method") != "compressed-tensors":
        return False
    return any(group.input_activations for group in scheme_in(quantization).config_groups.values())


def inputs_of(layer: str, quantization: dict[str, Any]) -> Activations | None:
    """How the inputs of a layer that is stored quantized are rounded; None where they are not.

    Raises:
        UserError: as scheme_in and group_of.
    """
    return group_of(layer, scheme_in(quantization)).input_activations


def scheme_of(layer: str, quantization: Quantization) -> Weights:
    """How the weights of a layer that is stored quantized are quantized.

    Raises:
        UserError: as group_of.
    """
    weights = group_of(layer, quantization).weights
    assert weights is not None
    return weights


def group_of(layer: str, quantization: Quantization) -> Group:
    """The group with weights that a layer belongs to: the one that names it, one whose pattern fits, or the first for its class.

    Raises:
        UserError: no group has weights for it, or a pattern is none, or takes too long.
    """

    def rank(group: Group) -> int:
        if layer in group.targets:
            return 0
        return 1 if any(target.startswith("re:") and fits(target[3:], layer) for target in group.targets) else 2

    plausible = [
        (rank(group), group)
        for group in quantization.config_groups.values()
        if group.weights and (rank(group) < 2 or any(not target.startswith("re:") for target in group.targets))
    ]
    if not plausible:
        raise UserError(f"{layer} is stored quantized, and no config_groups of the configuration says how: fetch the checkpoint again")
    return min(plausible, key=lambda found: found[0])[1]
