"""Bytes and durations as a forecast says them, in the language that is spoken."""

from __future__ import annotations

from qlab.workbook.language.spoken import say

LONG, VERY_LONG = 5400, 36000  # seconds from which on a duration is told in hours, and in whole ones


def bytes_said(count: float) -> str:
    """2.40 GB, in French 2.40 Go; a GB is 10⁹ bytes."""
    if count >= 1e8:
        return say("{size:,.2f} GB", size=count / 1e9)
    if count >= 1e5:
        return say("{size:,.2f} MB", size=count / 1e6)
    return say("{size:,.1f} KB", size=count / 1e3)


def time_said(seconds: float) -> str:
    """In minutes, or in hours where it is long."""
    if seconds < LONG:
        return say("{minutes} min", minutes=max(1, round(seconds / 60)))
    if seconds < VERY_LONG:
        return say("{hours:.1f} h", hours=seconds / 3600)
    return say("{hours:,.0f} h", hours=seconds / 3600)
