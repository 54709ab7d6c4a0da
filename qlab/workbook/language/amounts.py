"""Bytes and durations as a forecast says them, in the language that is spoken."""

from __future__ import annotations

from qlab.artifacts.budget import size_text
from qlab.workbook.language.spoken import gettext

LONG = 5400  # seconds from which on a duration is told in hours


def bytes_said(count: float) -> str:
    """2.40 GB, in French 2.40 Go."""
    number, unit = size_text(count).split()
    return f"{number} {({'GB': gettext('GB'), 'MB': gettext('MB')}).get(unit, unit)}"


def time_said(seconds: float) -> str:
    """In minutes, or in hours where it is long."""
    if seconds < LONG:
        return gettext("{minutes} min").format(minutes=max(1, round(seconds / 60)))
    return gettext("{hours} h").format(hours=f"{seconds / 3600:.1f}" if seconds < 10 * 3600 else f"{seconds / 3600:,.0f}")
