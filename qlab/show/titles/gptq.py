"""Lesson 3: compensation, damping, and how much text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from qlab.claims.each import ALONE, AS_OBQ
from qlab.workbook.language.spoken import say

FLAT = 0.05  # of KL: what more text changes by less is flat
AS_IT_IS, SHRUNK, DIAGONAL = "H as it is", "H shrunk", "control: H's diagonal"


def compensation(errors: Mapping[str, float]) -> str:
    """Output error by way: what GPTQ leaves of plain rounding's, and the loop without compensation."""
    left, control = errors["GPTQ"] / errors["RTN"], errors["no compensation"] / errors["RTN"]
    if left < 1:
        return say(
            "GPTQ leaves {left:.0%} of plain rounding's output error; without compensation {control:.0%}", left=left, control=control
        )
    return say(
        "GPTQ does not lower plain rounding's output error: {left:.0%} of it; without compensation {control:.0%}",
        left=left,
        control=control,
    )


def compensation_by_layer(errors: pd.DataFrame) -> str:
    """In how many layers GPTQ has less error than plain rounding; `errors` as `layer_errors` gives them."""
    plain, gptq = (errors[errors["way"] == way].set_index("layer")["error"] for way in ("RTN", "GPTQ"))
    ratio = gptq / plain
    values = {"lower": int((ratio < 1).sum()), "layers": len(ratio), "least": ratio.min(), "most": ratio.max()}
    return say("GPTQ has less error than plain rounding in {lower} of {layers} layers: {least:.0%} to {most:.0%} of it", **values)


def damping(layer: str, points: Sequence[tuple[float, float]], plain: float) -> str:
    """(damping, error) of a layer, by damping: of these dampings the one with the least error on the calibration text, and what the
    smallest, the largest and plain rounding, with the error `plain`, leave beside it."""
    best, least = min(points, key=lambda point: point[1])
    (smallest, first), (largest, last) = points[0], points[-1]
    values = {"layer": layer, "best": best, "smallest": smallest, "largest": largest, "times": last / least, "first": first / least,
              "plain": plain / least}  # fmt: skip
    if best == largest:
        return say("{layer}: of these dampings the largest, {largest:g}, has the least error on the calibration text; "
                   "{first:.2f} times as large at {smallest:g}, {plain:.1f} times with plain rounding", **values)  # fmt: skip
    if best == smallest:
        return say("{layer}: of these dampings the smallest, {smallest:g}, has the least error on the calibration text; "
                   "{times:.1f} times as large at {largest:g}, {plain:.1f} times with plain rounding", **values)  # fmt: skip
    return say("{layer}: of these dampings {best:g} has the least error on the calibration text; "
               "{first:.2f} times as large at {smallest:g}, {times:.1f} times at {largest:g}, "
               "{plain:.1f} times with plain rounding", **values)  # fmt: skip


def obq(same: int, of: int) -> str:
    """How many of a layer's codes are OBQ's, and what that says of the claim."""
    if same == of:
        return say("All {of:,} codes are those of OBQ: on this layer GPTQ is OBQ, computed in another way", of=of)
    values = {"other": of - same, "of": of, "share": 1 - same / of}
    if same >= AS_OBQ * of:
        return say(
            "{other:,} of {of:,} codes differ from OBQ's: at most one in a thousand, which the order of additions may explain. "
            "GPTQ is OBQ here",
            **values,
        )
    return say("{other:,} of {of:,} codes ({share:.1%}) are not those of OBQ: on this layer GPTQ is another method", **values)


def alone(same: int, control: int, of: int) -> str:
    """How many of a layer's codes stay alone and in a walk over all layers, and in the control, where other matrices should change some."""
    values = {"same": same / of, "control": control / of}
    if same < ALONE * of:
        return say("Only {same:.2%} of the layer's codes are the same alone and in the walk: it is not quantized on its own", **values)
    if control >= ALONE * of:
        return say("{same:.2%} of the layer's codes are the same alone and in the walk; but so are {control:.2%} behind quantized blocks "
                   "(control), so the comparison tells nothing", **values)  # fmt: skip
    return say("{same:.2%} of the layer's codes are the same alone and in the walk: it is quantized on its own. Behind quantized blocks "
               "(control) only {control:.2%} are", **values)  # fmt: skip


def calibration(curves: Mapping[str, Mapping[int, float]]) -> str:
    """KL by the number of windows, with H as it is, with H shrunk, and by the diagonal alone, which is plain rounding."""
    few, many = min(curves[AS_IT_IS]), max(curves[AS_IT_IS])
    plain, shrunk = (curves[name][few] / curves[DIAGONAL][few] for name in (AS_IT_IS, SHRUNK))
    values = {"few": few, "many": many, "plain": plain, "shrunk": shrunk}
    if plain <= 1:
        return say(
            "{few} of {many} calibration windows are enough to beat plain rounding: {plain:.0%} of its KL, with H shrunk {shrunk:.0%}",
            **values,
        )
    if shrunk <= 1:
        return say(
            "With {few} of {many} calibration windows GPTQ has {plain:.0%} of plain rounding's KL, with H shrunk {shrunk:.0%}", **values
        )
    return say(
        "With {few} of {many} calibration windows GPTQ is worse than plain rounding, shrunk or not: {plain:.0%}, {shrunk:.0%} of its KL",
        **values,
    )


def by_amount(curves: Mapping[str, Mapping[int, float]]) -> list[str]:
    """The same curves in sentences: what shrinking changes at each number of windows, and from which on each of the two is flat."""
    text = "calibration windows {count}: KL with H shrunk {kl:.5f}, {share:.0%} of that with H as it is"
    said = [say(text, count=count, kl=kl, share=kl / curves[AS_IT_IS][count]) for count, kl in curves[SHRUNK].items()]
    for way in (AS_IT_IS, SHRUNK) if len(curves[SHRUNK]) > 1 else ():
        *_, (before, high), (most, last) = points = sorted(curves[way].items())
        first = most
        for count, kl in reversed(points):
            if abs(kl / last - 1) > FLAT:
                break
            first = count
        values = {"way": way, "first": first, "before": before, "most": most, "high": high, "last": last, "near": FLAT}
        if first == most:
            text = "{way}: not flat yet, KL goes from {high:.4f} with {before} to {last:.4f} with {most} calibration windows"
        else:
            text = "{way}: flat from {first} of {most} calibration windows on (KL within {near:.0%} of the last)"
        said.append(say(text, **values))
    return said
