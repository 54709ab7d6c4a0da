"""Lesson 1: which tokens rounding moves, by their place in the window and by how sure the original is of the next one."""

from __future__ import annotations

from collections.abc import Mapping

from qlab.evaluate.quality import PARTS, Quality

PLACE, SURE = "place in the window", "probability of the original's likeliest token"


def by_part(quality: Mapping[str, Quality], by: str) -> dict[str, list[tuple[float, float]]]:
    """The KL of each part of the tokens, over that of all, at the middle of the part: in % of the window where `by` is PLACE, else of the
    probability that the original gives to its likeliest token. A part without tokens is left out."""
    curves = {}
    for name, found in quality.items():
        parts = (found.kl_by_place if by == PLACE else found.kl_by_confidence) or []
        whole = max(found.kl or 0.0, 1e-12)
        curves[name] = [(100 * (place + 0.5) / PARTS, kl / whole) for place, kl in enumerate(parts) if kl is not None]
    return curves
