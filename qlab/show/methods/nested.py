"""Lesson 5: the bits of NF4's scales with and without double quantization, and how far the absmax move."""

from __future__ import annotations

from qlab.show.drawing import INK, PALETTE, Drawing, caption, stacked
from qlab.workbook.drawn.nested import Nested
from qlab.workbook.language.spoken import gettext, say

SHOWN = 256  # blocks whose absmax are drawn: those that share one scale


def nested_picture(layer: str, found: Nested) -> Drawing:
    """Bits a weight by what they hold, and the absmax of some blocks before and after."""
    before, after = found.bits(found.single), found.bits(found.double)
    title = "{layer}: double quantization lowers {before:.3f} bits a weight to {after:.3f}; absmax moves by {moved:.2g} % in the mean"
    title = say(title, layer=layer, before=before, after=after, moved=100 * found.moved)
    figure, (bars, dots) = stacked(title, (2.0, 2.8), shared=False)
    names = list(dict.fromkeys([*found.single, *found.double]))
    rows = {gettext("single"): found.single, gettext("double"): found.double}
    left = dict.fromkeys(rows, 0.0)
    for name, colour in zip(names, PALETTE):
        widths = [8 * held.get(name, 0) / found.weights for held in rows.values()]
        bars.barh(list(left), widths, left=list(left.values()), color=colour, label=name)
        left = {row: start + width for (row, start), width in zip(left.items(), widths)}
    bars.invert_yaxis()
    bars.set(xlabel=gettext("bits a weight"), ylabel="absmax")
    bars.legend(fontsize=9, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1)
    exact, stored = found.exact[:SHOWN], found.stored[:SHOWN]
    off = 100 * (stored - exact) / exact.clamp(min=1e-30)
    dots.axhline(0, color=INK, linewidth=1)
    dots.plot(exact.tolist(), off.tolist(), "o", color=PALETTE[1], markersize=3)
    dots.set(xlabel=gettext("absmax of a block"), ylabel=gettext("moved by, %"))
    caption(dots, say("the first {count} blocks, each a dot", count=len(exact)))
    figure.values = {
        gettext("bits a weight, single"): before, gettext("bits a weight, double"): after, gettext("absmax moves by"): found.moved,
        **{say("bytes of {name}, {row}", name=name, row=row): count for row, held in rows.items() for name, count in held.items()},
    }  # fmt: skip
    return figure
