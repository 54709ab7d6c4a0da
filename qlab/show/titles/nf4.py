"""Lesson 5: NF4's levels, fine-tuning on them, and a new version of the model."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from qlab.claims.each import QLORA, UNQUANTIZED
from qlab.evaluate.quality import Quality, paired_difference
from qlab.show.titles.distances import order
from qlab.support.wording import signed
from qlab.workbook.benchmark import apart
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
    """How far the loss on the same windows changes: on NF4, and unquantized."""
    falls = {name: fmean(found[name]["before"]) - fmean(found[name]["after"]) for name in (QLORA, UNQUANTIZED) if name in found}
    steps = len(next(iter(found.values()))["losses"])
    if len(falls) == 1:
        (fall,) = falls.values()
        return say("After {steps} steps the loss on the same windows has changed by {rise:+.3f}", rise=-fall, steps=steps)
    four, full = falls.values()
    if min(four, full) <= 0:
        return say("After {steps} steps the loss on the same windows changes by {rise:+.3f} on NF4, by {rise_full:+.3f} unquantized",
                   rise=-four, rise_full=-full, steps=steps)  # fmt: skip
    return say("After {steps} steps the loss on the same windows has fallen by {four:.3f} on NF4, by {full:.3f} unquantized",
               four=four, full=full, steps=steps)  # fmt: skip


def afterwards(found: Mapping[str, Mapping[str, Any]], parameters: int) -> list[str]:
    """What NF4 holds of a model of so many parameters, and whether its loss after training is below that of each other 4-bit format."""
    if QLORA not in found:
        return []
    held, half = found[QLORA]["frozen_bytes"], 2 * parameters
    text = "NF4 holds {held:.1f} MB of frozen weights, {share:.0%} of the {half:.1f} MB that they are in FP16"
    lines = [say(text, held=held / 1e6, half=half / 1e6, share=held / half)]
    if len(found[QLORA]["after"]) < 2:
        return lines  # one window has no error
    for name in (name for name in found if name not in (QLORA, UNQUANTIZED)):
        difference, error = paired_difference(found[QLORA]["after"], found[name]["after"])
        values = {"name": name, "difference": signed(difference, 4), "error": error}
        if not apart(difference, error):
            lines.append(say("Afterwards the loss on NF4 is not told apart from that on {name}: {difference} ± {error:.4f}", **values))
        elif difference < 0:
            lines.append(say("Afterwards the loss on NF4 is below that on {name}: {difference} ± {error:.4f}", **values))
        else:
            lines.append(say("Afterwards the loss on NF4 is above that on {name}: {difference} ± {error:.4f}", **values))
    return lines


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
