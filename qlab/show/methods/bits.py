"""Lesson 1: a weight's bits in several formats, each a button that turns it. `bits.js` decodes as qlab/workbook/drawn/bits.py does."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from IPython.display import display

from qlab.show.widgets import beside, in_script
from qlab.workbook.drawn.bits import FLOATS, Stored
from qlab.workbook.language.spoken import gettext, say

PARTS = ("sign", "exponent", "mantissa", "code")


def turn_bits(weights: Mapping[str, tuple[float, Sequence[Stored]]]) -> None:
    """Show named weights, one at a time, in every format that they are `Stored` in; any bit can be turned.

    Without script, and on paper, the first of them stands there with its bits and what they say.
    """
    weight, formats = next(iter(weights.values()))
    options = "".join(
        f'<option value="{place}">{html.escape(f"{gettext(name)}: {number(value)}")}</option>'
        for place, (name, (value, _)) in enumerate(weights.items())
    )
    rows, which = "".join(row(weight, found) for found in formats), html.escape(gettext("weight"))
    data = {"weights": [as_dict(*found) for found in weights.values()], "words": words()}
    page = (
        f'<div class="qlab-bits"><style>{beside("control.css")}{beside("methods/bits.css")}</style>'
        f'<p class="qlab-finding" aria-live="polite"><strong>{html.escape(finding(weight, formats))}</strong></p>'
        f'<div class="qlab-controls"><label><span>{which}</span><select aria-label="{which}" autocomplete="off">{options}</select></label>'
        f'<button type="button">{html.escape(gettext("As it is stored"))}</button></div>{key()}{rows}'
        f'<script type="application/json">{in_script(data)}</script>'
        f"<script>{beside('methods/bits.js')}</script></div>"
    )
    lines = [finding(weight, formats), *(f"{found.format}: {found.bits} = {said(found)}" for found in formats)]
    display({"text/html": page, "text/plain": "\n".join(lines)}, raw=True)


def words() -> dict[str, str]:
    """What bits.js says, in the language that is spoken."""
    return {
        "finding": gettext("The weight {weight}: {format} is farthest from it, by {error}"), "error": gettext("error"),
        "unbound": gettext("without bound"), "nan": gettext("no number (NaN)"), "infinity": gettext("infinity"),
    }  # fmt: skip


def key() -> str:
    """What the colours mean."""
    return '<p class="qlab-key">' + " ".join(f'<span class="{part}">{html.escape(gettext(part))}</span>' for part in PARTS) + "</p>"


def row(weight: float, found: Stored) -> str:
    """A format: its bits as buttons, and what they say."""
    kinds = parts(found)
    last = len(found.bits) - 1
    named = [
        say("{kind}, bit {place}: {bit}", kind=kind, place=last - place, bit=bit)
        for place, (bit, kind) in enumerate(zip(found.bits, kinds))
    ]
    buttons = "".join(
        f'<button type="button" class="{kind}" aria-pressed="{"true" if bit == "1" else "false"}" tabindex="{0 if place == 0 else -1}" '
        f'aria-label="{html.escape(named[place])}">{bit}</button>'
        for place, (bit, kind) in enumerate(zip(found.bits, kinds))
    )
    return (
        f'<div class="qlab-format" data-format="{html.escape(found.format)}"><span>{html.escape(found.format)}</span>'
        f'<div role="toolbar" aria-label="{html.escape(say("Bits of {format}", format=found.format))}">{buttons}</div>'
        f"<output>{html.escape(said(found))}; {html.escape(gettext('error'))} {html.escape(error(weight, found))}</output></div>"
    )


def parts(found: Stored) -> list[str]:
    """The part that each bit belongs to."""
    if found.format not in FLOATS:
        return ["code"] * len(found.bits)
    layout = FLOATS[found.format]
    return ["sign", *["exponent"] * layout.exponent, *["mantissa"] * layout.mantissa]


def said(found: Stored) -> str:
    """The bits as a product: −1 × 2^−6 × 1.25 = −0.01953; (11 − 8) × 0.0123 = 0.0369."""
    if found.format not in FLOATS:
        return f"({int(found.bits, 2)} − {found.zero}) × {number(found.scale)} = {number(found.value)}"
    if not math.isfinite(found.value):
        return number(found.value)
    layout = FLOATS[found.format]
    exponent, mantissa = int(found.bits[1 : 1 + layout.exponent], 2), int(found.bits[1 + layout.exponent :], 2)
    power, whole = max(exponent, 1) - 2 ** (layout.exponent - 1) + 1, 1 if exponent else 0
    first, factor = "−1" if found.bits[0] == "1" else "1", number(whole + mantissa / 2**layout.mantissa)
    scale = f" × {number(found.scale)}" if layout.finite else ""
    return f"{first} × 2^{sign(power)} × {factor}{scale} = {number(found.value)}"


def error(weight: float, found: Stored) -> str:
    """By how much the number that comes back differs from the weight, in % of it."""
    off = 100 * abs(found.value - weight) / abs(weight)
    return f"{number(off, 2)} %" if math.isfinite(off) else gettext("without bound")


def finding(weight: float, formats: Sequence[Stored]) -> str:
    """Which format is farthest from the weight."""
    off = {found.format: abs(found.value - weight) for found in formats}
    worst = max(off, key=lambda name: off[name] if off[name] == off[name] else math.inf)
    farthest = next(found for found in formats if found.format == worst)
    text = "The weight {weight}: {format} is farthest from it, by {error}"
    return say(text, weight=number(weight), format=worst, error=error(weight, farthest))


def number(value: float, digits: int = 5) -> str:
    """In so many digits, as bits.js writes it: very small and very large ones with a power of ten."""
    if not math.isfinite(value):
        return gettext("no number (NaN)") if value != value else sign(value).replace("inf", gettext("infinity"))
    if value == 0:
        return "0"
    exact = Decimal(value)
    # A half goes away from zero, as in JavaScript; Python's own formats take the even neighbour.
    short = exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), ROUND_HALF_UP)
    if 1e-4 <= abs(value) < 1e5:
        return sign(float(short))
    front, power = f"{short:.{digits - 1}e}".split("e")
    return f"{sign(float(front))} × 10^{sign(int(power))}"


def sign(value: float) -> str:
    """A number as it prints, with the sign of minus."""
    return f"{value:.12g}".replace("-", "−")


def as_dict(weight: float, formats: Sequence[Stored]) -> dict[str, Any]:
    """What bits.js needs of a weight."""
    floats = [FLOATS.get(found.format) for found in formats]
    return {
        "weight": weight,
        "formats": [
            {"bits": found.bits, "scale": found.scale, "zero": found.zero}
            | ({"exponent": layout.exponent, "mantissa": layout.mantissa, "finite": layout.finite} if layout else {})
            for found, layout in zip(formats, floats)
        ],
    }
