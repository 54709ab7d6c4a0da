"""Lesson 1: bits, groups, channels, and activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from statistics import median
from typing import Any

import pandas as pd
from torch import Tensor

from qlab.evaluate.quality import PARTS, Quality, paired_difference
from qlab.show.drawing import shown
from qlab.show.titles.distances import order
from qlab.support.wording import signed
from qlab.workbook.benchmark import apart
from qlab.workbook.drawn.parts import PLACE, by_part
from qlab.workbook.experiments import short_name
from qlab.workbook.language.spoken import enumerated, gettext, say

LARGE = 10  # times the median channel: what the claim of AWQ's paper is read as (qlab/claims)
LOOP = 20  # characters that are said again: fewer are a line of dashes, or a name
INT8 = ("weights", "weights and activations", "the same, migrated")  # rows of `eight_bits`
STORED = "the same, one stored scale"  # its last row


def memory(sizes: Mapping[str, float]) -> str:
    """GB of a 70B's weights by format: what 4 bits a weight take with all that they need."""
    real, quarter = sizes["AWQ/GPTQ INT4 g128"], sizes["FP16"] / 4
    values = {"real": real, "quarter": quarter, "more": real / quarter - 1}
    if real > 1.005 * quarter:
        return say("A 70B in INT4 takes {real:.1f} GB, {more:.0%} more than a quarter of FP16 ({quarter:.1f} GB)", **values)
    return say("A 70B in INT4 takes {real:.1f} GB, no more than a quarter of FP16", **values)


def staircase(layer: str, bits: int, weights: Tensor, rounded: Mapping[int, Tensor]) -> str:
    """How many values are left of a group of weights at so many `bits`, and how much larger the error is than at the next larger of the
    widths in `rounded`; of the largest, how much larger it is at the next smaller."""
    widths = sorted(rounded)
    errors = {width: float((one - weights).square().sum() / weights.square().sum().clamp(min=1e-30)) for width, one in rounded.items()}
    values = {
        "layer": short_name(layer), "bits": bits, "count": weights.numel(), "values": len(rounded[bits].unique()),
        "error": shown(100 * errors[bits]),
    }  # fmt: skip
    if bits < widths[-1]:
        other = widths[widths.index(bits) + 1]
        return say(
            "{layer}: at {bits} bits {count} weights keep {values} values; the squared error, {error} %, is {times} times that at {other} "
            "bits",
            other=other, times=shown(errors[bits] / max(errors[other], 1e-30)), **values,
        )  # fmt: skip
    other = widths[-2]
    return say(
        "{layer}: at {bits} bits {count} weights keep {values} values; the squared error is {error} %, and at {other} bits {times} times "
        "as large",
        other=other, times=shown(errors[other] / max(errors[bits], 1e-30)), **values,
    )  # fmt: skip


def ladder(quality: Mapping[str, Quality]) -> str:
    """By what factor KL grows with the last two bits taken away, and whether bad rounding costs more than a bit."""
    kl = {name: max(found.kl or 0.0, 1e-12) for name, found in quality.items()}
    third, second = kl["int3"] / kl["int4"], kl["int2"] / kl["int3"]
    if second > third:
        steps = say("From 3 to 2 bits KL grows {second:.1f} times, more than from 4 to 3 bits ({third:.1f} times)",
                    third=third, second=second)  # fmt: skip
    else:
        steps = say("From 3 to 2 bits KL grows {second:.1f} times, no more than from 4 to 3 bits ({third:.1f} times)",
                    third=third, second=second)  # fmt: skip
    down = order(quality["int4, rounded down"], quality["int3"])
    if down > 0:
        return say("{steps}; 4 bits rounded down are farther from the original than 3 bits rounded to nearest", steps=steps)
    if down < 0:
        return say("{steps}; 4 bits rounded down are nearer to the original than 3 bits rounded to nearest", steps=steps)
    return say("{steps}; 4 bits rounded down are not told apart from 3 bits rounded to nearest", steps=steps)


def steps(kl: Mapping[str, float]) -> str:
    """By what factor KL grows with each bit taken away, from 8 bits to 2."""
    of = {bits: max(kl[f"int{bits}"], 1e-12) for bits in (8, 4, 3, 2)}
    first = of[4] / of[8]
    return say(
        "From 8 to 4 bits KL grows {first:,.0f} times, {each:.1f} times a bit; from 4 to 3 bits {third:.1f} times; "
        "from 3 to 2 bits {second:.1f} times",
        first=first, each=first**0.25, third=of[3] / of[4], second=of[2] / of[3],
    )  # fmt: skip


def parted(quality: Mapping[str, Quality], by: str) -> str:
    """The last part of `by_part` beside the first. By place each part has as many tokens, so its error is taken as √PARTS times that of
    all; by probability, where a part may have few, no error is known, and the shares are told without a verdict."""
    ends = {name: (curve[0][1], curve[-1][1]) for name, curve in by_part(quality, by).items() if len(curve) > 1}
    if not ends:
        return say("All tokens lie in one part")
    shares = {name: last / max(first, 1e-12) for name, (first, last) in ends.items()}
    if by != PLACE:
        each = [say("{name} ({share:.0%})", name=name, share=share) for name, share in shares.items()]
        return say("KL where the original is surest, in % of KL where it is least sure: {shares}", shares=enumerated(each))
    values = {"least": min(shares.values()) - 1, "most": max(shares.values()) - 1}
    errors = {name: (2 * PARTS) ** 0.5 * (quality[name].kl_stderr or 0.0) / max(quality[name].kl or 0.0, 1e-12) for name in ends}
    beyond = [gettext(name) for name, (first, last) in ends.items() if apart(last - first, errors[name])]
    if beyond:
        text = "From the first quarter of a window to the last KL changes by {least:+.0%} to {most:+.0%}; beyond the error at {names}"
        return say(text, names=enumerated(beyond), **values)
    return say(
        "From the first quarter of a window to the last KL changes by {least:+.0%} to {most:+.0%}, nowhere beyond the error", **values
    )


def flips(quality: Mapping[str, Quality]) -> str:
    """How often the likeliest token is another, where the original is least sure and where it is surest."""
    parts = []
    for name, found in quality.items():
        shares = [share for share in found.flips_by_confidence or [] if share is not None]
        if shares:
            parts.append(say("{name} ({first:.1%}, {last:.1%})", first=shares[0], last=shares[-1], name=name))
    return say("Another likeliest token where the original is least sure, and where it is surest: {parts}", parts=enumerated(parts))


def said(chat: Sequence[Mapping[str, Any]]) -> str:
    """Of answers (of `answers`) by bits: the largest of the widths at which one is not the original's, and how many end in one passage
    over and over, the original's own among them."""
    original = {entry["prompt"]: entry["answer"].split() for entry in chat if entry["bits"] is None}
    of = {bits: [entry for entry in chat if entry["bits"] == bits] for bits in dict.fromkeys(entry["bits"] for entry in chat)}
    changed = [bits for bits, found in of.items() if bits and any(one["answer"].split() != original[one["prompt"]] for one in found)]
    if changed:
        first = say("Of the widths tried, {bits} bits is the largest at which an answer is not the original's", bits=max(changed))
    else:
        first = say("At no width does an answer differ from the original's")
    looping = {bits: sum(loops(one["answer"]) for one in found) for bits, found in of.items()}
    parts = []
    for bits, count in looping.items():
        values = {"count": count, "all": len(of[bits]), "bits": bits}
        if count:
            parts.append(
                say("{count} of {all} at {bits} bits", **values) if bits else say("{count} of {all} of the original's own", **values)
            )
    if not parts:
        return say("{first}; no answer ends in one passage over and over", first=first)
    return say("{first}; answers that end in one passage over and over: {parts}", first=first, parts=enumerated(parts))


def loops(answer: str) -> bool:
    """Whether an answer ends in one passage three times or more (the last may be cut off), LOOP characters at least of it repeated."""
    for size in range(1, len(answer) // 2 + 1):
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(reversed(answer), reversed(answer[:-size]))))
        if same >= max(2 * size, LOOP) and any(sign.isalnum() for sign in answer[-size:]):
            return True
    return False


def answers(chat: Sequence[Mapping[str, Any]]) -> str:
    """A line for each width: how many answers (of `answers`) are the original's, and after how many words the others change."""
    original = {entry["prompt"]: entry["answer"].split() for entry in chat if entry["bits"] is None}
    lines = []
    for bits in dict.fromkeys(entry["bits"] for entry in chat if entry["bits"] is not None):
        found = [(original[entry["prompt"]], entry["answer"].split()) for entry in chat if entry["bits"] == bits]
        shared = [str(len(list(takewhile(lambda words: words[0] == words[1], zip(*pair))))) for pair in found if pair[0] != pair[1]]
        values = {"bits": bits, "same": len(found) - len(shared), "count": len(found)}
        if not shared:
            lines.append(say("At {bits} bits, word for word the original's: all {count} answers", **values))
            continue
        text = "At {bits} bits, word for word the original's: {same} of {count} answers; words before the others change: {words}"
        lines.append(say(text, words=enumerated(shared), **values))
    return "\n".join(lines)


def group_size(layer: str, table: pd.DataFrame, show: str) -> str:
    """The smallest groups against the largest, at 4 bits, in the column `show` of a `group_size_table`."""
    at = table[table["bits"] == 4].set_index("group")[show]
    small, large = int(at.index.min()), int(at.index.max())
    values = {"layer": short_name(layer), "small": small, "large": large}
    if small == large:
        return say("{layer}: of these sizes only groups of {large} divide the rows", **values)
    if show == "bits/weight":
        return say("{layer}: at 4 bits, groups of {small} take {more:.2f} bits a weight more than groups of {large}",
                   more=at[small] - at[large], **values)  # fmt: skip
    share = at[small] / at[large]
    if share < 1:
        return say("{layer}: at 4 bits, groups of {small} leave {share:.0%} of the error of groups of {large}", share=share, **values)
    return say("{layer}: at 4 bits, groups of {small} have no less error than groups of {large} ({share:.0%})", share=share, **values)


def channels(ratios: Mapping[str, float]) -> str:
    """Largest over median channel by layer: how many inputs have a channel that is LARGE.

    Layers of one block that have the same ratio read the same input.
    """
    most = max(ratios, key=lambda layer: ratios[layer])
    large = [(layer.partition(".")[0], ratio) for layer, ratio in ratios.items() if ratio >= LARGE]
    values = {"layer": most, "ratio": ratios[most], "limit": LARGE}
    if not large:
        return say("No layer has a channel {limit} times its median channel; the most is {ratio:.1f} times, in {layer}", **values)
    return say(
        "Inputs with a channel of at least {limit} times the median channel: {inputs}, which {layers} layers read; "
        "the most is {ratio:.1f} times, in {layer}",
        inputs=len(set(large)), layers=len(large), **values,
    )  # fmt: skip


def kinds(ratios: Mapping[str, float]) -> str:
    """The same ratios in the median layer, and in the most and the least uneven kind of layer, each in the median over its blocks."""
    of: dict[str, list[float]] = {}
    for layer, ratio in ratios.items():
        of.setdefault(layer.partition(".")[2] or layer, []).append(ratio)
    middle = {kind: median(found) for kind, found in of.items()}
    most, least = max(middle, key=lambda kind: middle[kind]), min(middle, key=lambda kind: middle[kind])
    return say(
        "In the median layer the largest channel is {ratio:.1f} times the median channel; the most uneven kind of layer is {most}, "
        "{more:.1f} times in its median block, the least {least}, {fewer:.1f} times",
        ratio=median(ratios.values()), most=most, more=middle[most], least=least, fewer=middle[least],
    )  # fmt: skip


def eight_bits(quality: Mapping[str, Quality]) -> str:
    """What rounding the activations costs beside that of the weights, and what the migration wins back of it."""
    if not set(INT8) <= set(quality):
        return say("INT8 weights alone are at KL {kl}", kl=shown(quality["weights"].kl or 0.0))
    weights, both, migrated = (quality[name] for name in INT8)
    if order(both, weights) <= 0:
        return say("Rounding activations to INT8 as well costs nothing beyond the error of the measurement")
    cost = (both.kl or 0.0) - (weights.kl or 0.0)
    values = {"times": (both.kl or 0.0) / max(weights.kl or 0.0, 1e-12), "share": abs((both.kl or 0.0) - (migrated.kl or 0.0)) / cost}
    turned = order(migrated, both)
    if turned < 0:
        return say("Rounding activations too makes KL {times:.1f} times as large; the migration takes back {share:.0%} of that", **values)
    if turned > 0:
        return say("Rounding activations too makes KL {times:.1f} times as large; the migration adds {share:.0%} to that", **values)
    return say("Rounding activations too makes KL {times:.1f} times as large; the migration changes nothing beyond the error", **values)


def stored_scale(quality: Mapping[str, Quality]) -> list[str]:
    """What one stored scale for all tokens changes beside a scale a token, window by window; nothing where either was not measured."""
    if not {INT8[-1], STORED} <= set(quality):
        return []
    each, one = quality[INT8[-1]], quality[STORED]
    difference, error = paired_difference(one.kl_windows or [], each.kl_windows or [])
    values = {
        "kl": shown(one.kl or 0.0), "times": (one.kl or 0.0) / max(each.kl or 0.0, 1e-12), "change": signed(difference, 5), "error": error,
    }  # fmt: skip
    if not apart(difference, error):
        text = "One stored scale for all tokens: KL {kl}, not told apart from a scale a token ({change} ± {error:.5f}, window by window)"
    elif difference > 0:
        text = (
            "One stored scale for all tokens: KL {kl}, {times:.1f} times that of a scale a token ({change} ± {error:.5f}, window by window)"
        )
    else:
        text = "One stored scale for all tokens: KL {kl}, nearer than a scale a token ({change} ± {error:.5f}, window by window)"
    return [say(text, **values)]


def beside_int4(quality: Mapping[str, Quality], int4: Quality) -> str:
    """The KL of INT8, with activations where they could be rounded, beside that of weights in INT4."""
    name = INT8[1] if INT8[1] in quality else INT8[0]
    kl = quality[name].kl or 0.0
    return say(
        "INT8, {name}: KL {kl}, {share:.2g} % of the KL of INT4 in 1.3",
        name=name,
        kl=shown(kl),
        share=100 * kl / max(int4.kl or 0.0, 1e-12),
    )
