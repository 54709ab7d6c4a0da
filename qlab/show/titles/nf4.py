"""Lesson 5: NF4's levels, fine-tuning on them, and a new version of the model."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from qlab.evaluate.quality import Quality
from qlab.show.titles.distances import order
from qlab.workbook.language.spoken import say


def levels(errors: Mapping[str, float]) -> str:
    """Output error on NF4's levels, and on uniform ones."""
    normal, uniform = errors["NF4"], errors["uniform levels (control)"]
    if normal < uniform:
        return say("NF4 leaves {left:.0%} of the output error of 16 uniform levels", left=normal / uniform)
    return say("NF4 does not lower the output error of 16 uniform levels: {left:.0%} of it", left=normal / uniform)


def distance(quality: Mapping[str, Quality]) -> str:
    """What double quantization costs, and FP4 beside NF4."""
    double, single, small = quality["NF4 double"], quality["NF4"], quality["FP4"]
    plain = max(single.kl or 0.0, 1e-12)
    values = {"share": (double.kl or 0.0) / plain, "times": (small.kl or 0.0) / plain}
    if order(double, single) > 0:
        return say("Double quantization makes KL {share:.3f} times as large; FP4 is {times:.1f} times as far as NF4", **values)
    return say(
        "Double quantization raises KL by no more than its error ({share:.3f} times); FP4 is {times:.1f} times as far as NF4", **values
    )


def training(found: Mapping[str, Mapping[str, Any]]) -> str:
    """How far the loss on the same windows changes: on NF4, then unquantized."""
    falls = [fmean(part["before"]) - fmean(part["after"]) for part in found.values()]
    values = dict(zip(("four", "full"), falls)) | {"steps": len(next(iter(found.values()))["losses"])}
    if len(falls) == 1:
        return say("After {steps} steps the loss on the same windows has changed by {rise:+.3f}", rise=-falls[0], **values)
    if min(falls) <= 0:
        return say("After {steps} steps the loss on the same windows changes by {rise:+.3f} on NF4, by {rise_full:+.3f} unquantized",
                   rise=-falls[0], rise_full=-falls[-1], **values)  # fmt: skip
    return say("After {steps} steps the loss on the same windows has fallen by {four:.3f} on NF4, by {full:.3f} unquantized", **values)


def version(found: Mapping[str, Quality]) -> str:
    """Distance from the new version of the model: of the old artifact, and of one made anew."""
    old, anew = found["old artifact"], found["quantized again"]
    times = (old.kl or 0.0) / max(anew.kl or 0.0, 1e-12)
    turned = order(old, anew)
    if turned > 0:
        return say("The old artifact is {times:.1f} times as far from the new version as one made anew", times=times)
    if turned < 0:
        return say("The old artifact is nearer to the new version than one made anew: {times:.2f} times as far", times=times)
    return say("The old artifact and one made anew are not told apart by their distance from the new version")
