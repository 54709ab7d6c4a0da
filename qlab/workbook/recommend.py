"""What to take, by the reader's own measurements and constraints, beside what the guide's decision tree says for the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from qlab.evaluate.quality import paired_difference
from qlab.plan.choose import recommend as guide_says
from qlab.support.wording import Sentence, joined, listed
from qlab.workbook.benchmark import EIGHT_BIT, ORIGINAL, Row, apart, generation, of_formats, pace, slower

USES = {  # a use, the guide's answers to reach it, and the formats that can be put to it
    "production on vLLM or TGI": ("AWQ", "GPTQ", ORIGINAL),
    "Ollama or llama.cpp": ("GGUF",),
    "fine-tuning": ("NF4", ORIGINAL),
    "something else": ("AWQ", "GPTQ", "GGUF", "NF4", ORIGINAL),
}
OFFLOADED = ("GGUF",)  # runtimes of the others keep all layers on the device


@dataclass(frozen=True)
class Advice:
    """What the guide says, what this run's measurements say, whether the two agree, and why."""

    guide: str
    measured: str
    agree: bool
    why: str


def recommend(measured: Sequence[Row], use: str, offload: bool, share: float) -> Advice:
    """For a `use` of USES: the format nearest to the original among those that can be put to it and whose weights take at most `share`
    of the original's size; of several not told apart from it, the one that generates fastest here; of those whose speed is not told apart
    either, one that the guide names, or else the smallest.

    Raises:
        KeyError: no such use.
    """
    answers = (use, "yes" if offload else "no") if use == "something else" else (use,)
    guide = guide_says(*answers)
    rows = of_formats(measured)
    original = next(row for row in rows if row.name == ORIGINAL)
    formats = [name for name in USES[use] if not offload or name in OFFLOADED]
    able = [row for row in rows if row.name.startswith(tuple(formats))] if formats else []
    room = share * original.disk_bytes
    fitting = [row for row in able if row.disk_bytes <= room]
    if not fitting:
        least = min(able, key=lambda row: row.disk_bytes, default=None)
        why = Sentence("no format for this use was measured here with layers on the CPU, also where its runtime can leave them there")
        if least:
            size = least.disk_bytes / original.disk_bytes
            why = Sentence("the smallest for this use, {name}, takes {size:.0%} of the original's size", name=least.name, size=size)
        return Advice(guide, Sentence("nothing measured here"), False, why)
    nearest = min(fitting, key=lambda row: row.quality.kl or 0)
    equals = [row for row in fitting if row is nearest or not farther(row, nearest)]
    fastest = max(equals, key=pace)
    untimed = not any(row.figures for row in equals)
    tied = [row for row in equals if untimed or row is fastest or not slower(row, fastest)]
    best = min(tied, key=lambda row: (not names(guide, row), row.disk_bytes))
    found = {"kl": best.quality.kl or 0, "size": best.disk_bytes / original.disk_bytes, "speed": generation(best)}
    why = Sentence("KL {kl:.5f}, {size:.0%} of the original's size", **found)
    if best.figures and generation(best):
        found["spread"] = best.figures.speed.generation_sd
        why = Sentence("{quality}, {speed:.0f} ± {spread:.0f} tok/s here", quality=why, **found)
    if others := [row.name for row in tied if row is not best]:
        why = Sentence("{found}; not told apart by distance or speed: {names}", found=why, names=listed(others))
    named = [row for row in rows if row.name != best.name and names(guide, row)]
    if not (agree := names(guide, best)):
        parted = [beside(row, fitting, formats) for row in named] or [Sentence("the guide names no format measured here")]
        why = joined("; ", [why, *parted])
    return Advice(guide, best.name, agree, why)


def every_advice(measured: Sequence[Row], shares: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each use, with and without layers on the CPU, and each share of the original's size, in percent."""
    return [
        {"use": use, "layers on the CPU": offload, "size at most (%)": share}
        | asdict(recommend(measured, use, offload == "yes", share / 100))
        for use, offload, share in product(USES, ("no", "yes"), shares)
    ]


def names(guide: str, row: Row) -> bool:
    """Whether what the guide says names the format of `row`."""
    return row.name.split()[0] in guide.replace(":", " ").split() and not (row.name == EIGHT_BIT and "Q4_K_M" in guide)


def farther(row: Row, nearest: Row) -> bool:
    """Whether `row` is told apart from the nearest, window by window; the original is nearest to itself without windows."""
    if not row.quality.kl_windows or not nearest.quality.kl_windows:
        return True
    return apart(*paired_difference(row.quality.kl_windows, nearest.quality.kl_windows))


def beside(row: Row, fitting: Sequence[Row], formats: Sequence[str]) -> Sentence:
    """Why a format that the guide names was not taken."""
    if not row.name.startswith(tuple(formats)):
        return Sentence("{name} cannot be put to this use with these constraints", name=row.name)
    if row not in fitting:
        return Sentence("{name} is larger than allowed", name=row.name)
    return Sentence("{name} has KL {kl:.5f}", name=row.name, kl=row.quality.kl or 0)
