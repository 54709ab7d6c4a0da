"""What encoded experts take while they wait: those of a block are written together, when the last of them is done."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from qlab.artifacts.block_shape import BlockShape
from qlab.formats.gguf.encoding import shapes_of
from qlab.formats.gguf.mix import tensor_type
from qlab.models.opening import OpenedModel
from qlab.recipes import FP8, GGUF, NF4, Integers, WalkedRecipe
from qlab.recipes.mixed import HALF, Mixed


def waiting(recipe: WalkedRecipe, block: BlockShape, source: OpenedModel) -> float:
    """Bytes of all experts of `source`'s largest `block` as the recipe encodes them; 0 where it has none. A dense block's layers are few,
    and what a recipe needs at work, which was fitted to such blocks, has them."""
    if not block.experts:
        return 0.0
    if isinstance(recipe, GGUF):
        return block.experts * gguf_expert_bytes(recipe, source)
    if isinstance(recipe, Mixed):
        # One that stays in half precision is not encoded: it lies in the block, which is counted.
        widths = {recipe.width(name.rpartition(".")[0]) for name, _ in matrices(source)} - {HALF}
        bits = max((with_scales(recipe, width) for width in widths), default=0.0)
    elif isinstance(recipe, Integers):
        bits = with_scales(recipe, recipe.bits)
    elif isinstance(recipe, FP8):
        bits = 8.0
    else:
        assert isinstance(recipe, NF4)
        bits = 4 + (8 if recipe.double else 32) / 64  # blocks of 64 share a scale
    return bits / 8 * block.experts * sum(width * out for width, out in block.expert)


def with_scales(recipe: Integers, width: int) -> float:
    """Bits of a weight with its share of a scale and a zero point."""
    return width + ((16 + width) / recipe.group_size if recipe.group_size > 0 else 0.0)


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
