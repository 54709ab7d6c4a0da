"""Speeds by which nothing is ranked: timings that disagree among themselves."""

from __future__ import annotations

UNSTEADY = 0.5  # of a mean: where the spread over rounds is as much, it is no figure to rank by


def steady(mean: float, spread: float) -> bool:
    """Whether the rounds of a measurement agree well enough for its mean to be ranked."""
    return spread < UNSTEADY * mean
