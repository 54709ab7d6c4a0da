"""Checkpoints that store a model under other names than its class has, or experts in another form: which stored tensor holds what.

transformers itself knows how the families' files differ from its classes (transformers.conversion_mapping); its rules are asked here, for
names. What a file already calls as the class does is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, apply_renamings

from qlab.models.experts import Piece
from qlab.models.layout import Layout, Shape

ONE_BY_ONE = ({"MergeModulelist"}, {"MergeModulelist", "Concatenate"})  # transformers' names for putting stored experts together

ROWS = ("Concatenate", 0)  # its step, and the dimension, that lays rows of one tensor behind those of another


@dataclass(frozen=True)
class Source:
    """The stored tensor that holds a plain one, whole or, where there is a `piece`, among others."""

    stored: str
    piece: Piece | None = None


def sources(model: PreTrainedModel, layout: Layout, stored: Mapping[str, Shape]) -> dict[str, Source]:
    """By the names of plain tensors, where those are that `stored`, names and shapes, holds under other names."""
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    pieces: dict[str, dict[str, Piece]] = {}
    for name, piece in layout.pieces.items():
        pieces.setdefault(piece.fused, {})[name] = piece
    stacked: dict[str, dict[str, Piece]] = {}  # as in GGUF: a tensor for all experts' gates, one for all their up projections
    for name, piece in layout.pieces.items():
        path = piece.fused.rpartition(".")[0]
        whole = path + name.removeprefix(f"{path}.{piece.expert}")
        stacked.setdefault(whole, {})[name] = Piece(whole, piece.expert, 0, 0, 1, piece.count, False)
    numbered = {(piece.fused, piece.expert, piece.part): name for name, piece in layout.pieces.items()}
    found: dict[str, Source] = {}
    for name in sorted(set(stored) - set(layout.shapes)):
        renamed = apply_renamings(name, renamings)
        for candidate in (renamed, f"{model.base_model_prefix}.{renamed}"):
            if candidate in layout.shapes:
                found[candidate] = Source(name)
            elif candidate in pieces and stored[name] in either_way(shape := layout.fused[candidate]):
                found |= {own: Source(name, turned(piece, stored[name] != shape)) for own, piece in pieces[candidate].items()}
            elif candidate in stacked and all(stored[name][1:] == layout.shapes[own] for own in stacked[candidate]):
                found |= {own: Source(name, piece) for own, piece in stacked[candidate].items()}
            elif (place := expert_of(candidate, converters)) in numbered:
                found[numbered[place]] = Source(name)
            else:
                continue
            break
    return found


def either_way(fused: Shape) -> tuple[Shape, ...]:
    """The shapes that a fused tensor is stored in: its own, or that of matrices [in, out] for [out, in]."""
    return (fused, (fused[0], fused[2], fused[1])) if len(fused) == 3 else (fused,)


def turned(piece: Piece, swapped: bool) -> Piece:
    """The piece in a stored tensor whose last two dimensions are `swapped`."""
    return replace(piece, transposed=not piece.transposed) if swapped else piece


def expert_of(name: str, converters: list[WeightConverter]) -> tuple[str, int, int]:
    """(fused tensor, expert, place among what it holds of one expert) of a tensor stored one an expert; ("", 0, 0) of others."""
    for rule in converters:
        target, pattern = rule.rename_source_key(name)
        if pattern is None:
            continue
        number = re.search(pattern.replace("*.", r"(\d+)\."), name) if "*." in pattern else None
        if number and {type(step).__name__ for step in rule.operations} in ONE_BY_ONE:
            return target, int(number[1]), rule.source_patterns.index(pattern)
        break
    return "", 0, 0


@dataclass(frozen=True)
class Joined:
    """The stored tensors, in their order, that transformers makes one of; `by_rows` where it is the rows of the first, then of the next."""

    parts: tuple[str, ...]
    by_rows: bool


def joined(model: PreTrainedModel, layout: Layout, stored: Iterable[str]) -> dict[str, Joined]:
    """The plain tensors that transformers makes of several of the `stored` ones, such as OLMo-hybrid's convolution of three, by name."""
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    found: dict[str, list[tuple[int, str]]] = {}
    by_rows: dict[str, bool] = {}
    for name in sorted(set(stored) - set(layout.shapes)):
        for rule in rules:
            if not isinstance(rule, WeightConverter):
                continue
            target, pattern = rule.rename_source_key(apply_renamings(name, renamings))
            if not pattern:
                continue
            place = rule.source_patterns.index(pattern)
            for candidate in (target, f"{model.base_model_prefix}.{target}"):
                if candidate in layout.shapes:
                    found.setdefault(candidate, []).append((place, name))
                    by_rows[candidate] = [(type(step).__name__, getattr(step, "dim", None)) for step in rule.operations] == [ROWS]
            break
    return {name: Joined(tuple(part for _, part in sorted(parts)), by_rows[name]) for name, parts in found.items() if len(parts) > 1}
