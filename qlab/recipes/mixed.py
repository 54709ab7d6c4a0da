"""Grouped integers of several widths in one checkpoint: layers that matter more have more bits; stored as compressed-tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from torch import Tensor

from qlab.formats.compressed_tensors import writing as compressed
from qlab.methods.grid import SCALE_BITS, GroupedIntegers
from qlab.models.opening import OpenedModel
from qlab.recipes.fitting import JOINED, left_alone, stored_layers
from qlab.recipes.integers import Integers
from qlab.recipes.recipe import WalkedRecipe
from qlab.support.errors import UserError
from qlab.support.wording import layer_place
from qlab.walk.block import Block
from qlab.walk.statistics import Statistics

HALF = 16  # the "width" of a layer that is left in half precision


@dataclass(frozen=True)
class Mixed(Integers):
    """`widths`: of layers by their whole names, where they are not `bits`; HALF leaves one in half precision. `budget`: the bits a weight
    that were asked for, scales and zero points included."""

    widths: tuple[tuple[str, int], ...] = ()
    budget: float = 0.0

    @property
    def name(self) -> str:
        return super().name.replace(f"-w{self.bits}g", f"-mixed{self.budget:g}g")

    def width(self, layer: str) -> int:
        """Of a layer, by its whole name."""
        return dict(self.widths).get(layer, self.bits)

    def by_width(self, layers: Iterable[str], prefix: str = "") -> dict[int, list[str]]:
        """Layers by their widths; `prefix` stands before their names."""
        known, found = dict(self.widths), dict[int, list[str]]()
        for name in layers:
            found.setdefault(known.get(prefix + name, self.bits), []).append(name)
        return found

    def left(self, block: Block) -> dict[str, str]:
        return dict.fromkeys(self.by_width(block.layers, block.prefix).get(HALF, ()), "it is to be kept") | super().left(block)

    def _round(self, block: Block, names: list[str], seen: Statistics) -> Iterator[tuple[str, tuple[GroupedIntegers, Tensor]]]:
        for width, some in self.by_width(names, block.prefix).items():
            yield from Integers._round(replace(self, bits=width), block, some, seen)

    def assemble(self, source: OpenedModel, parts: Sequence[Path], out: Path, largest: float) -> None:
        kept, _ = stored_layers(source.layout, parts)
        by_width, scheme = self.by_width(name.removesuffix(".weight") for name in source.layout.linear), self.scheme
        groups = [
            (patterns(source.layout.blocks, layers), compressed.integers(width, scheme.group_size, scheme.symmetric, scheme.scattered))
            for width, layers in sorted(by_width.items())
            if width != HALF
        ]
        self.finish(source, parts, out, compressed.mixed_config(groups, None, kept, left_alone(source)), largest)


def mixed(recipe: Integers, widths: Mapping[str, int], budget: float) -> Mixed:
    """`recipe` with layers of these widths, by their whole names."""
    options = {field.name: getattr(recipe, field.name) for field in fields(Integers)}
    return Mixed(**options, widths=tuple(sorted(widths.items())), budget=budget)


def check_mixable(recipe: WalkedRecipe) -> Integers:
    """See that a recipe can have layers of several widths.

    Raises:
        UserError: it cannot.
    """
    if type(recipe) is not Integers or recipe.method not in ("rtn", "gptq") or not recipe.compressed:
        raise UserError(
            f"{recipe.name} has one width for all layers; for bits a weight that differ by layer give a recipe of RTN or GPTQ that is "
            "stored as compressed-tensors, such as gptq-w4g128-ct"
        )
    return recipe


def stored_bits(recipe: Integers, width: int, inputs: int) -> float:
    """Bits that a weight of a row of so many takes at a width, with its share of scale and zero point."""
    if width == HALF:
        return HALF
    size = inputs if recipe.group_size == -1 else recipe.group_size
    return width + (SCALE_BITS + (0 if recipe.symmetric else width)) / size


def of_one_width(layers: Sequence[str]) -> dict[str, list[str]]:
    """Layers, by their whole names, in groups that must have one width, by what these are called: those that runtimes join to one matrix,
    and all experts of a list."""
    found: dict[str, list[str]] = {}
    for name in layers:
        _, experts, kind = layer_place(name)
        parent = name.rpartition(".")[0]
        joined = next((parts for parts in JOINED if kind in parts), (kind,))
        group = re.sub(r"\.\d+$", "", parent) if experts else f"{parent}.{'+'.join(joined)}"
        found.setdefault(group, []).append(name)
    return found


def patterns(blocks: str, layers: Sequence[str]) -> list[str]:
    """Patterns of compressed-tensors that fit these layers and no others: one for each name within a block, with the numbers of the blocks
    that have it. `blocks`: the name of their list."""
    stack, numbers = blocks.rpartition(".")[2], dict[str, list[str]]()
    for name in layers:
        number, _, within = name.removeprefix(f"{blocks}.").partition(".")
        numbers.setdefault(within, []).append(number)
    return [rf"re:(.*\.)?{stack}\.({'|'.join(each)})\.{re.escape(within)}$" for within, each in numbers.items()]
