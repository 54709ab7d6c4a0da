"""The matrices of a decoder block as the budget counts them: which layers read one input is told by their names, before anything is run."""

from __future__ import annotations

from dataclasses import dataclass

from qlab.models.layout import Layout

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
