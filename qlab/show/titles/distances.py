"""What figures of several lessons state: which of several is nearest to the original, and which of two is farther."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qlab.evaluate.quality import Quality, paired_difference
from qlab.support.wording import signed
from qlab.workbook.benchmark import apart
from qlab.workbook.language.spoken import enumerated, gettext, say


def order(first: Quality, second: Quality) -> int:
    """1 where `first` is farther from the original than `second`, window by window, −1 where it is nearer, 0 where the windows do not
    tell them apart."""
    difference, error = paired_difference(first.kl_windows or [], second.kl_windows or [])
    return (1 if difference > 0 else -1) if apart(difference, error) else 0


def nearest(quality: Mapping[str, Quality], plain: str) -> str:
    """Of several ways to quantize, by KL to the original; `plain` names the one that the others should beat."""
    best = min(quality, key=lambda name: quality[name].kl or 0.0)
    if best == plain:
        return say("No method is nearer to the original than {plain}", plain=plain)
    share = (quality[best].kl or 0.0) / max(quality[plain].kl or 0.0, 1e-12)
    if order(quality[best], quality[plain]) == 0:
        return say("{name} has {share:.0%} of the KL of {plain}, within the error of the measurement", name=best, share=share, plain=plain)
    equal = [gettext(name) for name in quality if name not in (best, plain) and not order(quality[name], quality[best])]
    if equal:
        return say(
            "{name} has {share:.0%} of the KL of {plain}; the measurement does not tell it apart from {equal}",
            name=best, share=share, plain=plain, equal=enumerated(equal),
        )  # fmt: skip
    return say("{name} is nearest to the original, with {share:.0%} of the KL of {plain}", name=best, share=share, plain=plain)


def against(quality: Mapping[str, Quality], pairs: Iterable[tuple[str, str]]) -> list[str]:
    """A sentence for each pair, by KL window by window: whether the first is nearer to the original than the second. Pairs of which one was
    not measured are left out."""
    said = []
    for name, other in pairs:
        if name not in quality or other not in quality:
            continue
        difference, error = paired_difference(quality[name].kl_windows or [], quality[other].kl_windows or [])
        values = {"name": name, "other": other, "change": signed(difference, 5), "error": error}
        if not apart(difference, error):
            said.append(say("{name}: not told apart from {other}, KL {change} ± {error:.5f}, window by window", **values))
        elif difference < 0:
            said.append(say("{name}: nearer to the original than {other}, KL {change} ± {error:.5f}, window by window", **values))
        else:
            said.append(say("{name}: farther from the original than {other}, KL {change} ± {error:.5f}, window by window", **values))
    return said
