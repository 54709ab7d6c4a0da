"""Which 4-bit method is nearest to the original on the model at hand, and what each part of the methods contributes to that.

Every sentence is made from measured numbers. A difference counts where it exceeds twice its error, window by window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import pandas as pd
from torch import Tensor

from qlab.evaluate.quality import Quality, paired_difference
from qlab.plan import choose
from qlab.recipes import WalkedRecipe, parse
from qlab.support.wording import Sentence, joined, listed, signed
from qlab.walk.statistics import ChannelMeans
from qlab.workbook.benchmark import apart, beyond_chance
from qlab.workbook.experiments import short_name
from qlab.workbook.lesson import Lesson

METHODS = {  # a method's name in the table, and its recipe without the group size
    "RTN": "rtn-w4g{}",
    "AWQ": "awq-w4g{}",
    "GPTQ symmetric": "gptq-w4g{}-sym",
    "GPTQ asymmetric": "gptq-w4g{}-asym",
    "AWQ + GPTQ": "awq-gptq-w4g{}",
}
PARTS = {  # a part of a method, and two methods that differ in it alone
    "scaling channels (AWQ)": ("GPTQ asymmetric", "AWQ + GPTQ"),
    "compensating errors (GPTQ)": ("AWQ", "AWQ + GPTQ"),
    "asymmetric grids": ("GPTQ symmetric", "GPTQ asymmetric"),
}
AWQ_LAYOUT = ("RTN", "AWQ", "AWQ + GPTQ")  # methods that are stored in it
OWN_WALK = ("RTN", "AWQ", "GPTQ symmetric")  # the lessons' tables give what these cost, each quantized alone


@dataclass(frozen=True)
class Measured:
    """One method on this model: its recipe's name, its quality, and by layer the relative squared output error on the calibration text.

    Where AWQ's scales are folded into a layer's rows (value and up projections), the error is of the output with those scales in it.
    """

    recipe: str
    quality: Quality
    errors: Mapping[str, float]


@dataclass(frozen=True)
class Part:
    """What one part of a method changes, all else equal.

    `removed`: % of the layers' output error on the calibration text, geometric mean. `kl` ± `kl_stderr`: nats a token on the evaluation
    text, paired by window; negative means nearer to the original.
    """

    name: str
    without: str
    including: str
    removed: float
    kl: float
    kl_stderr: float


@dataclass(frozen=True)
class Channels:
    """How unequal a layer's input channels are: the largest mean square over the median, and what the strongest 1 % have of the sum."""

    ratio: float
    top_share: float


def compare(lesson: Lesson, known: Mapping[str, Quality]) -> dict[str, Measured]:
    """All METHODS on the lesson's model, on the same windows. `known` holds the quality of recipes measured before, by their names."""
    recipes: dict[str, WalkedRecipe] = {name: parse(pattern.format(lesson.group_size)) for name, pattern in METHODS.items()}
    lesson.walk_together([recipe for name, recipe in recipes.items() if name not in OWN_WALK])
    found = {}
    for name, recipe in recipes.items():
        made = lesson.artifact(recipe)
        found[name] = Measured(recipe.name, known.get(recipe.name) or lesson.evaluate(recipe.name, made), made.errors)
    return found


def differences(methods: Mapping[str, Quality]) -> dict[str, tuple[float, float]]:
    """How much farther than the nearest each method is, nats a token, and the error of that; nearest first, itself with (0, 0)."""
    order = sorted(methods, key=lambda name: methods[name].kl or 0.0)
    nearest = methods[order[0]].kl_windows or []
    return {name: paired_difference(methods[name].kl_windows or [], nearest) for name in order}


def ranking(methods: Mapping[str, Measured]) -> pd.DataFrame:
    """The methods as a table, nearest first: KL, how much farther than the nearest, and whether that exceeds twice its error."""
    rows: list[dict[str, str]] = []
    for name, (farther, error) in differences({name: one.quality for name, one in methods.items()}).items():
        quality = methods[name].quality
        rows.append({
            "method": name, "recipe": methods[name].recipe, "KL (nats/token)": f"{quality.kl or 0:.5f} ± {quality.kl_stderr or 0:.5f}",
            "farther than the nearest by": f"{signed(farther, 5)} ± {error:.5f}" if rows else "—",
            "told apart": ("yes" if apart(farther, error) else "no") if rows else "—",
        })  # fmt: skip
    return pd.DataFrame(rows)


def nearest_sentence(methods: Mapping[str, Quality], model: str) -> Sentence:
    """Which of these methods is nearest to the original `model`, all of them named, and which of the others are told apart from it."""
    farther = differences(methods)
    best, *others = farther
    quality = methods[best]
    clear = [name for name in others if apart(*farther[name])]
    unclear = [name for name in others if name not in clear]
    found = {"methods": listed(list(methods)), "model": model, "best": best, "kl": quality.kl or 0, "error": quality.kl_stderr or 0}
    said = [Sentence("On {model}, of {methods}, the nearest to the original is {best}: KL {kl:.5f} ± {error:.5f}.", **found)]
    if unclear:
        names = listed([Sentence("{name} ({change})", name=name, change=difference(*farther[name])) for name in unclear])
        said.append(Sentence("These windows do not tell it apart from {names}.", names=names))
    if clear:
        names = listed([Sentence("{name} ({change})", name=name, change=difference(*farther[name])) for name in clear])
        said.append(Sentence("Farther by more than twice the error: {names}.", names=names))
    return joined(" ", said)


def brief_sentence(methods: Mapping[str, Quality]) -> Sentence:
    """The same in short, above the table of `ranking`, which has the figures."""
    best, *others = farther = differences(methods)
    unclear = [name for name in others if not apart(*farther[name])]
    if not unclear:
        return Sentence("Nearest to the original: {best}, told apart from all others.", best=best)
    return Sentence("Nearest to the original: {best}, not told apart from {names}.", best=best, names=listed(unclear))


def layout_sentence(methods: Mapping[str, Measured], group_size: int) -> Sentence:
    """Which recipe to take for AWQ's layout: of those stored in it the nearest here, beside the one that qlab recommends."""
    farther = differences({name: methods[name].quality for name in AWQ_LAYOUT})
    nearest = METHODS[next(iter(farther))].format(group_size)
    (recommended,) = choose.recipes("AWQ", group_size)
    said = Sentence("Recipes for AWQ's layout: the nearest to the original is {recipe}", recipe=nearest)
    if nearest == recommended:
        return Sentence("{nearest}, which qlab recommends.", nearest=said)
    found = next(farther[name] for name in AWQ_LAYOUT if METHODS[name].format(group_size) == recommended)
    values = {"nearest": said, "recipe": recommended, "difference": difference(*found)}
    if apart(*found):
        return Sentence("{nearest}; {recipe}, which qlab recommends, is farther by {difference}.", **values)
    return Sentence("{nearest}; {recipe}, which qlab recommends, is farther by {difference}, within twice the error.", **values)


def parts(methods: Mapping[str, Measured]) -> list[Part]:
    """What each of PARTS changes, by two methods that differ in it alone."""
    found = []
    for name, (without, including) in PARTS.items():
        before, after = methods[without], methods[including]
        removed = 100 * (1 - error_left(before.errors, after.errors))
        kl = paired_difference(after.quality.kl_windows or [], before.quality.kl_windows or [])
        found.append(Part(name, without, including, removed, *kl))
    return found


def error_left(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """What share of the layers' error is left, geometric mean over the layers that both quantized."""
    return math.exp(fmean(log_ratios(before, after).values()))


def log_ratios(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """The logarithm of each layer's error after over before; layers that either left in half precision are not compared."""
    return {name: math.log(max(after[name], 1e-12) / max(before[name], 1e-12)) for name in before if name in after}


def parts_table(found: Sequence[Part]) -> pd.DataFrame:
    """The parts as a table: what each changes in the layers' output error and in KL, and whether the latter exceeds twice its error."""
    rows: list[dict[str, str]] = []
    for part in found:
        rows.append({
            "part": part.name, "without it": part.without, "with it": part.including,
            "change of the layers' output error": f"{signed(-part.removed, 1)} %",
            "change of KL (nats/token)": difference(part.kl, part.kl_stderr),
            "told apart": "yes" if apart(part.kl, part.kl_stderr) else "no",
        })  # fmt: skip
    return pd.DataFrame(rows)


def part_sentences(found: Sequence[Part]) -> list[Sentence]:
    """Which part has the largest gain in KL, and of which the layers' error does not explain the change of KL."""
    clear = [part for part in found if apart(part.kl, part.kl_stderr)]
    gains = [part for part in clear if part.kl < 0]
    said = [Sentence("None of these parts brings this model nearer to the original by more than twice the error.")]
    if gains:
        said = [Sentence("The part with the largest gain on this model is {part}.", part=min(gains, key=lambda part: part.kl).name)]
    opposite = listed([part.name for part in clear if (part.kl < 0) != (part.removed > 0)])
    text = "KL and the layers' error change in opposite directions: {parts}. Errors of single layers do not explain the whole model here."
    return [*said, Sentence(text, parts=opposite)] if opposite else said


def channels(means: Mapping[str, ChannelMeans]) -> dict[str, Channels]:
    """How unequal the input channels of each layer are, by full name."""
    return {name: channels_of(seen.mean_square) for name, seen in means.items()}


def channels_of(mean_square: Tensor) -> Channels:
    """The same of one layer, from the mean x² of its channels [in]."""
    strongest = mean_square.topk(max(1, round(0.01 * len(mean_square)))).values.sum()
    smallest = 1e-12 * float(mean_square.max()) or 1.0
    ratio = float(mean_square.max() / mean_square.median().clamp(min=smallest))
    return Channels(ratio, float(strongest / mean_square.sum().clamp(min=1e-30)))


def channel_sentences(found: Mapping[str, Channels], methods: Mapping[str, Measured]) -> list[Sentence]:
    """How unequal the channels are, and whether scaling removes more error where they are more unequal."""
    most = max(found, key=lambda name: found[name].ratio)
    ratio, share = median(one.ratio for one in found.values()), 100 * median(one.top_share for one in found.values())
    said = Sentence(
        "Input channels: in the median layer the strongest channel has {ratio} times the mean square of the median channel (at most {most} "
        "times, in {layer}), and the strongest 1 % have {share:.1f} % of the sum.",
        ratio=times(ratio), most=times(found[most].ratio), layer=short_name(most), share=share,
    )  # fmt: skip
    without, including = PARTS["scaling channels (AWQ)"]
    gains = {name: -ratio for name, ratio in log_ratios(methods[without].errors, methods[including].errors).items() if name in found}
    if len(gains) < 4:
        return [said]
    together = float(pd.Series([found[name].ratio for name in gains]).rank().corr(pd.Series(list(gains.values())).rank()))
    return [said, together_sentence(together, len(gains))]


def together_sentence(together: float, layers: int) -> Sentence:
    """Whether scaling, added to GPTQ, gains more in layers with more unequal channels, from the rank correlation over so many layers."""
    measured = Sentence("rank correlation {together} over {layers} layers", together=signed(together, 2), layers=layers)
    if not beyond_chance(together, layers):
        text = "How unequal a layer's channels are does not tell what scaling adds to GPTQ there: {measured}, which chance gives too."
        return Sentence(text, measured=measured)
    if together > 0:
        return Sentence("Added to GPTQ, scaling gains more in layers whose channels are more unequal: {measured}.", measured=measured)
    return Sentence("Added to GPTQ, scaling gains less in layers whose channels are more unequal: {measured}.", measured=measured)


def times(ratio: float) -> str:
    """A ratio in as many digits as a reader needs."""
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.1f}"


def difference(farther: float, error: float) -> str:
    """A difference of KL with its error."""
    return f"{signed(farther, 5)} ± {error:.5f}"


def conclusions(methods: Mapping[str, Measured], lesson: Lesson) -> dict[str, Any]:
    """All that is said of a comparison on the lesson's model, as plain data: what was `found`, with the table of `ranking`, and `why`, with
    that of `parts_table`; `sentences` say the first without a table."""
    quality = {name: one.quality for name, one in methods.items()}
    farther = differences(quality)
    return {
        "nearest": next(iter(farther)),
        "told apart from": [name for name, found in farther.items() if apart(*found)],
        "sentences": [nearest_sentence(quality, lesson.source.name)],
        "found": [brief_sentence(quality), layout_sentence(methods, lesson.group_size)],
        "why": [*part_sentences(parts(methods)), *channel_sentences(channels(lesson.channels), methods)],
    }
