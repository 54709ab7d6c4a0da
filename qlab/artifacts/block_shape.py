"""The matrices of a decoder block as the budget counts them: which layers read one input is told by their names, before anything is run;
and what its encoded experts take while they wait, since those of a block are written together, when the last of them is done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from qlab.formats.gguf.encoding import shapes_of
from qlab.formats.gguf.mix import tensor_type
from qlab.models.layout import Layout
from qlab.models.opening import OpenedModel
from qlab.recipes import FP8, GGUF, NF4, Integers, WalkedRecipe
from qlab.recipes.mixed import HALF, Mixed

Group = tuple[int, int]
"""Layers that read one input: its width, and all their outputs together."""


@dataclass(frozen=True)
class BlockShape:
    """A decoder block's `groups` outside experts, those of each of its `experts`, all alike, and all its weights."""

    groups: list[Group]
    expert: list[Group]
    experts: int

    @property
    def weights(self) -> int:
        """Weights of all linear layers."""
        return sum(width * out for width, out in self.groups) + self.experts * sum(width * out for width, out in self.expert)


def largest_block(layout: Layout) -> BlockShape:
    """The block with the most weights: blocks may differ, as attention and convolution, or a dense one before those with experts."""
    within: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in layout.shapes.items():
        if layout.inside(name) and name.endswith(".weight"):
            index = name.removeprefix(f"{layout.blocks}.").partition(".")[0]
            within.setdefault(index, {})[layout.within_block(name).removesuffix(".weight")] = shape
    kinds = {tuple(shapes.items()): index for index, shapes in reversed(within.items())}
    return max((block_shape(layout, index, within[index]) for index in kinds.values()), key=lambda block: block.weights)


def block_shape(layout: Layout, index: str, shapes: dict[str, tuple[int, ...]]) -> BlockShape:
    """The groups of block `index`, whose weights have these `shapes`; which layers read one input is told by their names, before anything
    is run.

    Where a block has a single norm of its inputs, attention and MLP both read it (Cohere, Phi).
    """
    attention, mlp = ("q_proj", "k_proj", "v_proj", "qkv_proj"), ("gate_proj", "up_proj", "gate_up_proj", "fc1")
    norms = [name for name, shape in shapes.items() if len(shape) == 1 and "." not in name]
    together = (attention + mlp,) if len(norms) == 1 else (attention, mlp)
    found: dict[tuple[str, str], Group] = {}
    experts = {piece.expert for name, piece in layout.pieces.items() if name.startswith(f"{layout.blocks}.{index}.")}
    for name, shape in shapes.items():
        weight = f"{layout.blocks}.{index}.{name}.weight"
        if weight not in layout.linear:
            continue
        piece, (parent, _, part) = layout.pieces.get(weight), name.rpartition(".")
        if piece and piece.expert:
            continue  # like the first
        place = "expert" if piece else ("" if len(norms) == 1 else parent)
        key = place, next((names[0] for names in together if part in names), name)
        width, out = found.get(key, (shape[1], 0))
        found[key] = (width, out + shape[0])
    own, expert = ([group for (place, _), group in found.items() if (place == "expert") == inner] for inner in (False, True))
    return BlockShape(own, expert, len(experts))


def waiting(recipe: WalkedRecipe, block: BlockShape, source: OpenedModel) -> float:
    """Bytes of all experts of `source`'s largest `block` as the recipe encodes them; 0 where it has none. A dense block's layers are few,
    and what a recipe needs at work, which was fitted to such blocks, has them."""
    if not block.experts:
        return 0.0
    if isinstance(recipe, GGUF):
        return block.experts * gguf_expert_bytes(recipe, source)
    if isinstance(recipe, Mixed):
        # One that stays in half precision is not encoded: it lies in the block, which is counted.
        ways = recipe.by_way(name.rpartition(".")[0] for name, _ in matrices(source))
        bits = max((with_scales(way.bits, way.size) for way in ways if way.bits != HALF), default=0.0)
    elif isinstance(recipe, Integers):
        bits = with_scales(recipe.bits, recipe.group_size)
    elif isinstance(recipe, FP8):
        bits = 8.0
    else:
        assert isinstance(recipe, NF4)
        bits = 4 + (8 if recipe.double else 32) / 64  # blocks of 64 share a scale
    return bits / 8 * block.experts * sum(width * out for width, out in block.expert)


def with_scales(width: int, group_size: int) -> float:
    """Bits of a weight with its share of a scale and a zero point."""
    return width + ((16 + width) / group_size if group_size > 0 else 0.0)


def matrices(source: OpenedModel) -> Iterator[tuple[str, str]]:
    """The weights of every block's first expert, which all are like it: their names, and the block's number."""
    layout = source.layout
    for name, piece in layout.pieces.items():
        if piece.expert == 0 and name in layout.linear:
            yield name, name.removeprefix(f"{layout.blocks}.").partition(".")[0]


def gguf_expert_bytes(recipe: GGUF, source: OpenedModel) -> float:
    """Bytes of one expert in that block whose types take most: a mix spends more on the down projections of some."""
    blocks: dict[str, float] = {}
    for name, index in matrices(source):
        for target, shape in shapes_of(name, source.layout.shapes[name], source.text_config).items():
            values, size = GGML_QUANT_SIZES[GGMLQuantizationType[tensor_type(target, shape, recipe.types, source.text_config)]]
            blocks[index] = blocks.get(index, 0.0) + prod(shape) / values * size
    return max(blocks.values(), default=0.0)
