"""Qualities whose windows differ by far more than the methods do: only the pairs can tell them apart."""

from __future__ import annotations

from qlab.evaluate.quality import Quality

EASY = (0.1, 0.5, 0.2, 0.9)  # KL of each window
WOBBLE = (1e-4, -1e-4, 2e-4, -2e-4)


def quality(farther: float = 0.0, wobble: float = 1.0) -> Quality:
    """So much farther from the original than `quality()` in every window, give or take a little."""
    windows = [kl + farther + wobble * off for kl, off in zip(EASY, WOBBLE)]
    return Quality(20.0, 1.0, 2044, 512, kl=sum(windows) / 4, kl_stderr=0.1, kl_windows=windows)
