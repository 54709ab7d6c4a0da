"""Lesson 2: protected channels, the search for α, and where scales help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

import pandas as pd

from qlab.evaluate.quality import Quality
from qlab.show.titles.distances import nearest, order
from qlab.workbook.language.spoken import gettext, say

PLAIN, TOP, RANDOM = "RTN, 3 bits", "top 1 % kept", "random 1 % kept"  # the ways of 2.1
RTN, SEARCHED, SCALED, BOTH = "RTN", "grids searched", "scaled", "AWQ: both"  # those of 2.3
FLAT = 0.1  # a curve that falls by less is called flat, as the claim on calibration texts has it (qlab/claims)


def protection(errors: Mapping[str, float]) -> str:
    """Output error of plain rounding, with the top channels kept, and with as many random ones."""
    plain, top, random = (errors[way] for way in (PLAIN, TOP, RANDOM))
    values = {"top": 1 - top / plain, "random": 1 - random / plain}
    if plain - top > 2 * max(0.0, plain - random):
        return say("Keeping the top 1 % of channels removes {top:.1%} of the error, a random 1 % removes {random:.1%}", **values)
    return say("Keeping the top 1 % of channels removes no more than twice what a random 1 % does: {top:.1%} and {random:.1%}", **values)


def protection_by_layer(errors: pd.DataFrame) -> str:
    """In how many layers the top channels are the better choice; `errors` as `layer_errors` gives them."""
    top, random = (errors[errors["way"] == way].set_index("layer")["error"] for way in (TOP, RANDOM))
    values = {"layers": len(top), "top": int((top < random).sum())}
    return say("The top 1 % has less error than a random 1 % in {top} of {layers} layers", **values)


def most_protected(errors: pd.DataFrame) -> str:
    """In which layer the top channels remove the largest share of plain rounding's error, and what random ones remove there."""
    plain, top, random = (errors[errors["way"] == way].set_index("layer")["error"] for way in (PLAIN, TOP, RANDOM))
    removed = 1 - top / plain
    layer = removed.idxmax()
    values = {"layer": layer, "top": removed[layer], "random": 1 - random[layer] / plain[layer]}
    if values["top"] <= 0:
        return say("In no layer does the top 1 % remove any of the error")
    return say("Most is gained in {layer}: the top 1 % removes {top:.1%} of its error, a random 1 % {random:.1%}", **values)


def sweep(layer: str, points: Sequence[tuple[float, float]]) -> str:
    """(α, error) of a layer, α = 0 first."""
    best, least = min(points, key=lambda point: point[1])
    if best == 0:
        return say("{layer}: no α has less error than α = 0, plain rounding", layer=layer)
    share = 1 - least / points[0][1]
    return say("{layer}: least error at α = {best:g}, {share:.1%} below that at α = 0", layer=layer, best=best, share=share)


def least(points: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Of (α, error) the point with the least error, as numbers of the figure."""
    best, error = min(points, key=lambda point: point[1])
    return {gettext("α of the least error"): best, gettext("least error"): error}


def unmoved(gains: Mapping[str, float], uneven: Mapping[str, float]) -> str:
    """In how many layers no α has less error than plain rounding, and how uneven the inputs of the most uneven of these are."""
    none = [layer for layer, gain in gains.items() if gain <= 0]
    if not none:
        return say("The least error is at an α above 0 in each of {layers} layers", layers=len(gains))
    most = max(none, key=lambda layer: uneven[layer])
    return say(
        "The least error is at α = 0 in {count} of {layers} layers; the most uneven of these, {layer}, has a max/median of {ratio:.1f} "
        "(in the median layer: {median:.1f})",
        count=len(none), layers=len(gains), layer=most, ratio=uneven[most], median=median(uneven[layer] for layer in gains),
    )  # fmt: skip


def parts(quality: Mapping[str, Quality]) -> str:
    """Which of AWQ's two parts, scaled channels and searched grids, brings more alone, and what the other adds to it."""
    share = {name: (found.kl or 0.0) / max(quality[RTN].kl or 0.0, 1e-12) for name, found in quality.items()}
    alone = min((SEARCHED, SCALED), key=lambda name: share[name])
    if order(quality[alone], quality[RTN]) >= 0:
        return nearest(quality, RTN)
    if alone == SEARCHED:
        one = say("Searching the grids leaves {share:.0%} of RTN's KL; with scaling too", share=share[alone])
    else:
        one = say("Scaling leaves {share:.0%} of RTN's KL; with searched grids too", share=share[alone])
    added, values = order(quality[BOTH], quality[alone]), {"one": one, "both": share[BOTH]}
    if added < 0:
        return say("{one}, only {both:.0%}", **values)
    if added > 0:
        return say("{one}, more: {both:.0%}", **values)
    return say("{one}, {both:.0%}: no difference can be seen", **values)


def search(gains: Mapping[str, float], mean: float, chance: float) -> str:
    """The share of plain rounding's error that the search for α removes, by layer, in the mean, and with shuffled channels."""
    most = max(gains, key=lambda layer: gains[layer])
    values = {"mean": mean, "chance": chance, "most": gains[most], "layer": most}
    if mean > 2 * max(0.0, chance):
        return say(
            "The search removes {mean:.1%} of the error in the mean, {most:.0%} in {layer}; with shuffled channels {chance:.1%}", **values
        )
    return say("The search removes {mean:.1%} of the error in the mean, hardly more than with shuffled channels ({chance:.1%})", **values)


def calibration(curve: Mapping[int, float]) -> str:
    """KL of scaling alone by the number of calibration windows."""
    few, many = min(curve), max(curve)
    ratio = curve[few] / curve[many]
    values = {"few": few, "many": many, "ratio": ratio, "share": abs(ratio - 1)}
    if few == many:
        return say("KL {kl:.4f} with {many} calibration windows", kl=curve[many], many=many)
    if ratio > 1 + FLAT:
        return say("Scaling alone gains by more text: with {few} of {many} calibration windows KL is {share:.0%} larger", **values)
    if ratio < 1 - FLAT:
        return say("Scaling alone gains nothing by more text: with {few} of {many} calibration windows KL is {share:.0%} smaller", **values)
    return say(
        "A little text is enough for scaling alone: with {few} of {many} calibration windows KL is {ratio:.2f} times as large", **values
    )


def changes(table: pd.DataFrame) -> str:
    """A table of `layer_changes`: in how many layers each way lowers the error, and how much in the mean."""
    ways = []
    for way, part in table.groupby("way", sort=False):
        lower, mean = int((part["removed"] > 0).sum()), float(part["removed"].mean())
        values = {"way": gettext(str(way)), "lower": lower, "layers": len(part), "mean": abs(mean)}
        if mean >= 0:
            ways.append(say("{way} lowers the error of {lower} of {layers} layers, by {mean:.0f} % in the mean of all", **values))
        else:
            ways.append(
                say("{way} lowers the error of {lower} of {layers} layers, and raises it by {mean:.0f} % in the mean of all", **values)
            )
    return "; ".join(ways)
