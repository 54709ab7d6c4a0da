"""Lesson 4: a Q4_K superblock's bytes, which of them a sub-block is made of, and the 32 weights that they give."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from qlab.show.drawing import FAINT, INK, PALETTE, Drawing, caption, shown, stacked
from qlab.workbook.drawn.superblock import SIZE, Piece, SubBlock, code_pieces, minimum_pieces, scale_pieces, sub_block
from qlab.workbook.language.spoken import enumerated, gettext, say

ACROSS = 16  # bytes of a line
HEAD = [Piece(byte, 0, 8) for byte in range(4)]
COLOURS = dict(zip(("d, dmin", "scale", "minimum", "codes"), PALETTE))


def superblock_picture(weights: Tensor, block: Tensor, place: int) -> Drawing:
    """Sub-block `place`, 0 to 7, of a superblock of Q4_K, uint8 [144], of 256 `weights` float32 [256]."""
    part, own = sub_block(block, place), weights[place * SIZE :][:SIZE]
    error = float((part.values - own).square().sum() / own.square().sum().clamp(min=1e-30))
    steps = [sub_block(block, each).step for each in range(len(weights) // SIZE)]
    title = "Sub-block {place}: 16 values in steps of {step}, where the eight have steps of {least} to {most}; squared error {error} %"
    found = {"step": shown(part.step), "least": shown(min(steps)), "most": shown(max(steps)), "error": shown(100 * error)}
    title = say(title, place=place, **found)
    figure, (where, how, values) = stacked(title, (3.1, 0.7, 2.2), shared=False)
    fields = {"d, dmin": HEAD, "scale": scale_pieces(place), "minimum": minimum_pieces(place), "codes": code_pieces(place)}
    draw_bytes(where, block, fields)
    how.axis("off")
    how.text(-0.13, 1.4, "\n".join(by_hand(block, part, fields)), transform=how.transAxes, fontsize=9, va="top", linespacing=1.6)
    draw_values(values, own, part)
    figure.values = {
        "d": part.d, "dmin": part.dmin, "scale": part.scale, "minimum": part.minimum, "step": part.step, "value of code 0": part.lowest,
        "relative squared error": error,
    }  # fmt: skip
    return figure


def draw_bytes(axes: Axes, block: Tensor, fields: dict[str, list[Piece]]) -> None:
    """All bytes in two hexadecimal digits each; the bits of the sub-block's fields are shaded, the highest of a byte on the left."""
    for name, pieces in fields.items():
        for piece in pieces:
            line, byte = divmod(piece.byte, ACROSS)
            left = byte + (8 - piece.low - piece.width) / 8
            axes.add_patch(Rectangle((left, line), piece.width / 8, 1, facecolor=COLOURS[name], alpha=0.45))
    for offset, byte in enumerate(block.tolist()):
        line, place = divmod(offset, ACROSS)
        axes.text(place + 0.5, line + 0.5, f"{byte:02x}", ha="center", va="center", fontsize=9)
    lines = len(block) // ACROSS
    axes.set(xlim=(0, ACROSS), ylim=(lines, 0), xlabel=gettext("byte of the line"), ylabel=gettext("first byte of the line"))
    axes.set_xticks([place + 0.5 for place in range(ACROSS)], [str(place) for place in range(ACROSS)], fontsize=8)
    axes.set_yticks([line + 0.5 for line in range(lines)], [str(ACROSS * line) for line in range(lines)], fontsize=8)
    axes.grid(visible=False)
    handles = [Patch(facecolor=colour, alpha=0.45, label=gettext(name)) for name, colour in COLOURS.items()]
    axes.legend(handles=handles, fontsize=9, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1)


def by_hand(block: Tensor, part: SubBlock, fields: dict[str, list[Piece]]) -> list[str]:
    """The sums that decode the sub-block's first weight."""
    code = int(part.codes[0])
    return [
        say("d = {d}, dmin = {dmin}: two FP16 numbers in bytes 0 to 3", d=shown(part.d), dmin=shown(part.dmin)),
        f"{gettext('scale')} = {spelled(block, fields['scale'])} = {part.scale}",
        f"{gettext('minimum')} = {spelled(block, fields['minimum'])} = {part.minimum}",
        f"{gettext('first code')} = {spelled(block, fields['codes'][:1])} = {code}",
        f"{gettext('first weight')} = d · {part.scale} · {code} − dmin · {part.minimum} = {shown(float(part.values[0]))}",
    ]


def spelled(block: Tensor, pieces: Sequence[Piece]) -> str:
    """The bits of a number, and the bytes that they lie in."""
    text = "{digits} (bits {high}–{low} of byte {byte})"
    return enumerated([say(text, digits=p.digits(block), high=p.low + p.width - 1, low=p.low, byte=p.byte) for p in pieces])


def draw_values(axes: Axes, own: Tensor, part: SubBlock) -> None:
    """The weights, and the values that come back, on the sub-block's sixteen."""
    for code in range(16):
        axes.axhline(part.lowest + code * part.step, color=FAINT, linewidth=0.8)
    axes.plot(range(SIZE), part.values.tolist(), "_", color=PALETTE[0], markersize=8, markeredgewidth=3, label=gettext("decoded"))
    axes.plot(range(SIZE), own.tolist(), "o", color=INK, markersize=3, label=gettext("weight"))
    axes.grid(visible=False)
    axes.set(xlabel=gettext("weight of the sub-block"), ylabel=gettext("value"))
    axes.legend(fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1)
    caption(axes, gettext("lines: the 16 values"))
