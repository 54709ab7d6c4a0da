"""Lesson 3: the eigenvalues of H as they are and with damping."""

from __future__ import annotations

from collections.abc import Sequence

from qlab.show.drawing import INK, PALETTE, Drawing, stacked
from qlab.workbook.drawn.spectrum import Spectrum
from qlab.workbook.language.spoken import gettext, say

FLOOR = 1e-9  # under which nothing is drawn: what FP32 sums cannot tell from zero


def spectrum_picture(layer: str, found: Spectrum, dampings: Sequence[float]) -> Drawing:
    """The spectrum of a layer's H, and what becomes of it by each of `dampings`; the first is the one that the title speaks of."""
    first = dampings[0]
    title = (
        "{layer}: {share:.0%} of H's eigenvalues are smaller than what damping {damping:g} adds; largest over smallest falls from {before} "
        "to {after}"
    )
    if found.taken < found.channels:
        layer = say("{layer}, {taken:,} of its {channels:,} channels", layer=layer, taken=found.taken, channels=found.channels)
    falls = {"before": ratio(found.condition()), "after": ratio(found.condition(first))}
    title = say(title, layer=layer, share=found.below(first), damping=first, **falls)
    figure, (axes,) = stacked(title, (3.6,))
    share = [100 * (place + 1) / found.taken for place in range(found.taken)]
    for damping, colour in zip(dampings, PALETTE):
        axes.plot(share, found.damped(damping).tolist(), color=colour, label=say("damping {damping:g}", damping=damping))
    axes.plot(share, found.values.clamp(min=FLOOR).tolist(), color=INK, linewidth=2.5, label="H")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(say("eigenvalues by size, % of {count:,}", count=found.taken))
    axes.set_ylabel(gettext("eigenvalue / mean of H's diagonal"))
    axes.legend(fontsize=9)
    figure.values = {
        gettext("condition of H"): found.condition(),
        **{say("condition, damping {damping:g}", damping=damping): found.condition(damping) for damping in dampings},
        **{say("share below damping {damping:g}", damping=damping): found.below(damping) for damping in dampings},
    }
    return figure


def ratio(value: float) -> str:
    """A condition number in two digits; beyond what FP32 sums can tell, none."""
    return gettext("more than a billion") if value > 1e9 else say("{value:,.0f}", value=float(f"{value:.2g}"))
