"""Lesson 2: protected channels, the search for α, and where scales help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from qlab.workbook.language.spoken import gettext, say

PLAIN, TOP, RANDOM = "RTN, 3 bits", "top 1 % kept", "random 1 % kept"  # the ways of 2.1
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


def sweep(layer: str, points: Sequence[tuple[float, float]]) -> str:
    """(α, error) of a layer, α = 0 first."""
    best, least = min(points, key=lambda point: point[1])
    if best == 0:
        return say("{layer}: no α has less error than α = 0, plain rounding", layer=layer)
    share = 1 - least / points[0][1]
    return say("{layer}: least error at α = {best:g}, {share:.1%} below that at α = 0", layer=layer, best=best, share=share)


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
    """KL by the number of calibration windows."""
    few, many = min(curve), max(curve)
    ratio = curve[few] / curve[many]
    values = {"few": few, "many": many, "ratio": ratio, "share": abs(ratio - 1)}
    if few == many:
        return say("KL {kl:.4f} with {many} calibration windows", kl=curve[many], many=many)
    if ratio > 1 + FLAT:
        return say("More text helps: with {few} of {many} calibration windows KL is {share:.0%} larger", **values)
    if ratio < 1 - FLAT:
        return say("More text does not help: with {few} of {many} calibration windows KL is {share:.0%} smaller", **values)
    return say("A little text is enough: with {few} of {many} calibration windows KL is {ratio:.2f} times as large", **values)


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
