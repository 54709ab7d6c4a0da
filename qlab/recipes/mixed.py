"""Grouped integers of several widths in one checkpoint: layers that matter more have more bits, or groups of fewer weights; stored as
compressed-tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from qlab.formats.compressed_tensors import writing as compressed
from qlab.formats.packing import WIDTHS
from qlab.methods.grid import SCALE_BITS, GroupedIntegers
from qlab.models.opening import OpenedModel
from qlab.recipes.fitting import JOINED, STANDARD_SIZES, left_alone, stored_layers
from qlab.recipes.integers import Integers
from qlab.recipes.recipe import WalkedRecipe
from qlab.support.errors import UserError
from qlab.support.wording import layer_place
from qlab.walk.block import Block
from qlab.walk.statistics import Statistics

HALF = 16  # the "width" of a layer that is left in half precision
PLACE = re.compile(r"(?:.*?\.)??([^.]+)\.(\d+)\.(.+)")  # of a layer: the list of blocks, the block's number, the name within it


class Way(NamedTuple):
    """How a layer is rounded: to codes of so many `bits`, HALF for none, in groups of `size` weights (−1: a row) that share a scale."""

    bits: int
    size: int


@dataclass(frozen=True)
class Mixed(Integers):
    """`widths`: of layers by their whole names, where they are not `bits`; HALF leaves one in half precision. `sizes`: of their groups,
    where these are not `group_size`. `budget`: what was asked for, as it stands in the name: bits a weight, such as 4.25, or a size, such
    as 4.5GB."""

    widths: tuple[tuple[str, int], ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()
    budget: str = ""

    @property
    def name(self) -> str:
        return super().name.replace(f"-w{self.bits}g", f"-mixed{self.budget}g")

    def width(self, layer: str) -> int:
        """Of a layer, by its whole name."""
        return dict(self.widths).get(layer, self.bits)

    def by_way(self, layers: Iterable[str], prefix: str = "") -> dict[Way, list[str]]:
        """Layers by how they are rounded; `prefix` stands before their names."""
        widths, sizes, found = dict(self.widths), dict(self.sizes), dict[Way, list[str]]()
        for name in layers:
            way = Way(widths.get(prefix + name, self.bits), sizes.get(prefix + name, self.group_size))
            found.setdefault(way, []).append(name)
        return found

    def left(self, block: Block) -> dict[str, str]:
        kept = [name for way, names in self.by_way(block.layers, block.prefix).items() if way.bits == HALF for name in names]
        return dict.fromkeys(kept, "it is to be kept") | super().left(block)

    def _round(self, block: Block, names: list[str], seen: Statistics) -> Iterator[tuple[str, tuple[GroupedIntegers, Tensor]]]:
        for way, some in self.by_way(names, block.prefix).items():
            yield from Integers._round(replace(self, bits=way.bits, group_size=way.size), block, some, seen)

    def assemble(self, source: OpenedModel, parts: Sequence[Path], out: Path, largest: float) -> None:
        kept, _ = stored_layers(source.layout, parts)
        by_way, scheme = self.by_way(name.removesuffix(".weight") for name in source.layout.linear), self.scheme
        groups = [
            (patterns(both_names(source, layers)), compressed.integers(way.bits, way.size, scheme.symmetric, scheme.scattered))
            for way, layers in sorted(by_way.items())
            if way.bits != HALF
        ]
        self.finish(source, parts, out, compressed.mixed_config(groups, None, kept, left_alone(source)), largest)


def mixed(recipe: Integers, widths: Mapping[str, int | Way], budget: str) -> Mixed:
    """`recipe` with layers of these widths, by their whole names; `budget`: as it stands in the name."""
    options = {field.name: getattr(recipe, field.name) for field in fields(Integers)}
    ways = {name: way_of(width, recipe) for name, width in sorted(widths.items())}
    sizes = tuple((name, way.size) for name, way in ways.items() if way.size != recipe.group_size)
    return Mixed(**options, widths=tuple((name, way.bits) for name, way in ways.items()), sizes=sizes, budget=budget)


def way_of(width: int | Way, recipe: Integers) -> Way:
    """How a layer of this width is rounded by a recipe: in its groups, unless others are said."""
    return width if isinstance(width, Way) else Way(width, recipe.group_size)


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


def widths_in(text: str) -> list[int]:
    """Widths with commas between, such as 4,8, in order; HALF among them leaves a layer in half precision.

    Raises:
        UserError: one is no width of a layer.
    """
    return sorted({width_in(word.strip()) for word in text.split(",")})


def width_in(text: str) -> int:
    """A width of a layer.

    Raises:
        UserError: it is none.
    """
    if not text.isdecimal() or int(text) not in (*WIDTHS, HALF):
        raise UserError(f"{text!r} is no width of a layer: expected one of {', '.join(map(str, (*WIDTHS, HALF)))}")
    return int(text)


def sizes_in(text: str) -> list[int]:
    """Group sizes with commas between, such as 32,64; none in an empty text.

    Raises:
        UserError: one is no group size that runtimes have kernels for.
    """
    found = {word.strip() for word in text.split(",") if word.strip()}
    if wrong := found - {str(size) for size in STANDARD_SIZES}:
        raise UserError(f"{min(wrong)!r} is no group size of a layer: expected one of {', '.join(map(str, STANDARD_SIZES))}")
    return sorted(map(int, found))


def exceptions_in(kept: Sequence[str], set_to: Sequence[str]) -> dict[str, int]:
    """Widths by patterns of layers' names: HALF for those that are `kept`, and what "PATTERN=WIDTH" says of those that are `set_to` one.

    Raises:
        UserError: one has no such form, or no width of a layer.
    """
    found = dict.fromkeys(kept, HALF)
    for each in set_to:
        pattern, equals, width = each.rpartition("=")
        if not equals or not pattern:
            raise UserError(f"--set {each!r}: expected PATTERN=WIDTH, such as 'down_proj=8'")
        found[pattern] = width_in(width)
    return found


def stored_bits(recipe: Integers, width: int | Way, inputs: int) -> float:
    """Bits that a weight of a row of so many takes at a width, with its share of scale and zero point."""
    bits, size = way_of(width, recipe)
    return HALF if bits == HALF else bits + (SCALE_BITS + (0 if recipe.symmetric else bits)) / (inputs if size == -1 else size)


def offered_ways(recipe: Integers, widths: Sequence[int], sizes: Sequence[int], rows: Sequence[int]) -> list[Way]:
    """What layers whose rows have so many weights may have: each of `widths`, in groups of the recipe's size and of each of `sizes` that
    divides all rows."""
    fitting = sorted({recipe.group_size, *(size for size in sizes if all(inputs % size == 0 for inputs in rows))})
    return [Way(width, size) for width in widths for size in (fitting if width != HALF else [recipe.group_size])]


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


def both_names(source: OpenedModel, layers: Sequence[str]) -> list[str]:
    """Layers as the model's class calls them, and after these as its files do, where they call them otherwise: transformers looks for the
    former in a configuration, whatever reads the files for the latter."""
    stored = (source.checkpoint.stored_name(f"{name}.weight").removesuffix(".weight") for name in layers)
    return list(dict.fromkeys([*layers, *stored]))


def patterns(layers: Sequence[str]) -> list[str]:
    """Patterns of compressed-tensors that fit these layers of blocks and no others: one for all names within a block that the same blocks
    have, with the numbers of these."""
    numbers, withins = dict[tuple[str, str], list[str]](), dict[tuple[str, ...], list[str]]()
    for name in layers:
        if not (found := PLACE.fullmatch(name)):
            raise ValueError(f"{name} is no layer of a numbered block")
        stack, number, within = found.groups()
        numbers.setdefault((stack, within), []).append(number)
    for (stack, within), each in numbers.items():
        withins.setdefault((re.escape(stack), *each), []).append(re.escape(within))
    return [rf"re:(.*\.)?{stack}\.({'|'.join(each)})\.({'|'.join(some)})$" for (stack, *each), some in withins.items()]
