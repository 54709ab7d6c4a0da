"""Lesson 7: memory, quality against size and time, speed, answers, layers, and their widths."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import hypot
from statistics import fmean

import pandas as pd

from qlab.evaluate.runtime import RuntimeFigures
from qlab.support.steady import steady
from qlab.workbook.benchmark import EIGHT_BIT, Row, apart
from qlab.workbook.drawn import spending
from qlab.workbook.language.spoken import enumerated, gettext, say
from qlab.workbook.pareto import pareto_front

MOST = 4  # names that a title lists
FAR = 1.1  # times what was predicted: what is more is told
ALIKE = 1.05  # times: what is nearer than that is not called more


def memory(measured: Sequence[Row]) -> str:
    """Of all formats that ran: how far the memory of the loaded model is from the plan, at the least and at the most."""
    ratios = [(row.figures.memory.loaded / row.figures.memory.predicted, row.name) for row in measured if row.figures]
    if not ratios:
        return say("No format ran here")
    (least, _), (most, name) = min(ratios), max(ratios)
    values = {"name": name, "most": most, "least": least}
    if most > FAR:
        return say(
            "Loaded, {name} takes {most:.1f} times what was predicted, more than any other; the least is {least:.2f} times", **values
        )
    return say("Loaded, no format takes more than {most:.2f} times what was predicted", **values)


def front(points: Mapping[str, tuple[float, float]], cost: str, unsteady: Collection[str] = ()) -> str:
    """(cost, KL) by format, or by format and runtime: those that no other beats; `cost` is "size" or "time". Of the `unsteady` the time is
    no figure to rank by."""
    if left := [name for name in points if name in unsteady]:
        known = {name: point for name, point in points.items() if name not in unsteady}
        ranked = front(known, cost) if known else gettext(cost)
        return say("{ranked}; not ranked, since its rounds disagree: {names}", ranked=ranked, names=enumerated(left))
    best = pareto_front(points)
    values = {"count": len(points), "names": enumerated(best), "cost": cost}
    if len(best) == 1:
        return say("{names} beats all others in {cost} and in distance", **values)
    if len(best) <= MOST:
        return say("Not beaten in {cost} and distance, of {count}: {names}", **values)
    return say("Beaten in {cost} and distance: {beaten} of {count}", beaten=len(points) - len(best), **values)


def speeds(phase: str, timed: Mapping[str, RuntimeFigures]) -> str:
    """Which runs fastest in a phase, `generation` or `prompt`, and in generation what share of its ceiling it reaches; whose rounds
    disagree is named, and not ranked."""
    if not timed:
        return say("No format ran here")
    agreeing = {name: one for name, one in timed.items() if steady(getattr(one.speed, phase), getattr(one.speed, f"{phase}_sd"))}
    if left := [name for name in timed if name not in agreeing]:
        ranked = speeds(phase, agreeing) if agreeing else gettext(phase)
        return say("{ranked}; not ranked, since its rounds disagree: {names}", ranked=ranked, names=enumerated(left))
    order = sorted(timed, key=lambda name: -getattr(timed[name].speed, phase))
    first = timed[order[0]].speed
    values = {"phase": gettext(phase), "name": order[0], "speed": getattr(first, phase)}
    if len(order) > 1:
        second = timed[order[1]].speed
        difference = getattr(first, phase) - getattr(second, phase)
        if not apart(difference, hypot(getattr(first, f"{phase}_sd"), getattr(second, f"{phase}_sd"))):
            return say("{phase}: {name}, with {speed:,.0f} tokens/s, is not told apart from {second}", second=order[1], **values)
    if phase == "generation":
        share = first.generation / timed[order[0]].ceiling
        return say("{phase}: fastest is {name}, {speed:,.0f} tokens/s, {share:.0%} of its ceiling", share=share, **values)
    return say("{phase}: fastest is {name}, {speed:,.0f} tokens/s", **values)


def agreement(table: pd.DataFrame, tokens: int) -> str:
    """Of a table of `agreement_tables`, whose first format is the control: of the format that keeps most whole answers, how many these are,
    and at how many positions of prompts and answers the likeliest token stays. Of several with as many answers it is the first."""
    of_all = table[table["prompts of"] == "all"].set_index("format").iloc[1:]
    best = of_all["identical"].idxmax()
    values = {"name": best, "same": of_all.loc[best, "top1"], "whole": of_all.loc[best, "identical"], "tokens": tokens}
    four = of_all.drop(index=EIGHT_BIT, errors="ignore")["identical"]
    if best == EIGHT_BIT and len(four):
        return say("{name} keeps {whole:.0%} of answers of {tokens} tokens and {same:.0%} of likeliest tokens; "
                   "with about 4 bits {least:.0%} to {most:.0%} of answers stay", least=four.min(), most=four.max(), **values)  # fmt: skip
    if values["whole"] < values["same"]:
        return say("No format keeps more answers than {name}: {whole:.0%} of those of {tokens} tokens, "
                   "but the likeliest token at {same:.0%} of all positions", **values)  # fmt: skip
    return say("No format keeps more answers than {name}: {whole:.0%} of those of {tokens} tokens, "
               "and the likeliest token at {same:.0%} of all positions", **values)  # fmt: skip


def damage(curves: Mapping[str, Sequence[tuple[float, float]]], bits: float) -> str:
    """(bits a weight, predicted KL) by the way to choose widths: the ways beside each other within `bits`. One width for all seldom fills
    them; its own size is said."""
    (own, alike), (_, chosen), (_, random) = (at_most(curves[way], bits) for way in (spending.ALIKE, spending.CHOSEN, spending.RANDOM))
    values = {"bits": bits, "share": chosen / max(random, 1e-30), "own": own, "alike": chosen / max(alike, 1e-30)}
    if round(values["share"], 2) < 1:  # as it is printed
        return say("In {bits:.2f} bits a weight, widths by what each layer costs have {share:.0%} of the predicted KL of widths at random, "
                   "and {alike:.0%} of that of one width for all, {own:.2f} bits", **values)  # fmt: skip
    return say("In {bits:.2f} bits a weight, widths by what each layer costs have no less predicted KL than widths at random "
               "({share:.0%}), and {alike:.0%} of that of one width for all, {own:.2f} bits", **values)  # fmt: skip


def at_most(curve: Sequence[tuple[float, float]], bits: float) -> tuple[float, float]:
    """Of the points of a curve that take no more than `bits`, the largest."""
    return max(point for point in curve if point[0] <= bits * (1 + 1e-9))


def widths(table: pd.DataFrame) -> str:
    """Bits of layers, a row a block and a column a kind of layer: which kind has most in the mean, and which fewest."""
    kinds = table.mean()
    narrow, wide = float(table.min().min()), float(table.max().max())
    values = {"most": kinds.idxmax(), "more": kinds.max(), "least": kinds.idxmin(), "fewer": kinds.min(), "narrow": narrow, "wide": wide}
    if narrow == wide:
        return say("Every layer has {wide:.0f} bits: within this budget none gets wider codes than another", **values)
    if round(kinds.max(), 1) == round(kinds.min(), 1):  # as they are printed
        return say("Each kind of layer has {more:.1f} bits in the mean; single layers have {narrow:.0f} to {wide:.0f}", **values)
    return say("Most bits for {most}, {more:.1f} in the mean over the blocks; fewest for {least}, {fewer:.1f}", **values)


def layers(name: str, table: pd.DataFrame, data: bool = True) -> str:
    """Errors of a format as `error_table` has them: the kind of layer that loses most, and whether it is the first blocks or the last.
    Without calibration `data` they are of the weights."""
    kinds = table.mean()
    half = len(table) // 2
    values = {"format": name, "kind": kinds.idxmax(), "error": 100 * kinds.max(), "least": 100 * kinds.min()}
    if not data:
        return say("{format}, made without calibration text: {least:.2g} to {error:.2g} % of its weights, not of its outputs", **values)
    if not half:
        return say("{format}: most is lost in {kind}, {error:.2g} % of the output", **values)
    first, last = (fmean(part.mean(axis=1)) for part in (table.iloc[:half], table.iloc[-half:]))
    values |= {"times": max(first, last) / max(min(first, last), 1e-30)}
    if values["times"] < ALIKE:
        return say("{format}: most is lost in {kind}, {error:.2g} %; the first blocks and the last lose alike", **values)
    if first > last:
        return say("{format}: most is lost in {kind}, {error:.2g} %; the first blocks lose {times:.1f} times as much as the last", **values)
    return say("{format}: most is lost in {kind}, {error:.2g} %; the last blocks lose {times:.1f} times as much as the first", **values)
