"""The rules by which claims are decided, each with the words that the report prints beside its verdict.

A difference that does not exceed twice its standard error decides nothing: the verdict is NOISE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlab.evaluate.quality import paired_difference
from qlab.plan.explanation import explain
from qlab.plan.plan import GB, SHAPES, USABLE, device_named, fit, read_bytes, weight_bytes
from qlab.support.wording import Sentence, joined, signed

HOLDS, FAILS, NOISE = "holds", "does not hold", "within noise"
UNTESTABLE, OPEN, ADVICE = "not testable here", "not tested yet", "advice"
Results = Mapping[str, Any]
Decided = tuple[str, str]
"""A verdict and the measured figure."""
SEVENTY = "Llama-3.1-70B"
ABOUT = 0.1  # the guide's sizes are rounded: what "about" means, everywhere
MARGIN = 0.01  # of an error: what is nearer than that is not called less, and what removes less is no gain
ABOUT_RULE = f"the guide's rounded sizes are read as ± {ABOUT:.0%}"


@dataclass(frozen=True)
class Test:
    """How a claim is decided: `rule` in words, and the function that applies it to the recorded results."""

    rule: str
    decide: Callable[[Results], Decided]


def plain(holds: bool) -> str:
    """The verdict where there is no noise: arithmetic, or a setting that was read."""
    return HOLDS if holds else FAILS


def beyond(difference: float, error: float) -> str:
    """HOLDS where `difference` is positive beyond twice its error, FAILS where it is negative beyond that, else NOISE."""
    if not abs(difference) > 2 * error:  # nor where there is no error to tell
        return NOISE
    return plain(difference > 0)


def between(low: float, value: float, high: float, error: float) -> str:
    """Whether `value` lies within a range, NOISE where the range's nearer end is within twice the error of it."""
    if not min(abs(value - low), abs(value - high)) > 2 * error:
        return NOISE
    return plain(low < value < high)


def about(low: float, value: float, high: float) -> bool:
    """Whether a size is one that the guide may have rounded to `low` … `high`."""
    return (1 - ABOUT) * low <= value <= (1 + ABOUT) * high


def memory_of_70b(formats: Sequence[str], low: float, high: float | None = None) -> Test:
    """The claim that a 70B takes `low` (to `high`) GB in each of the formats; arithmetic on Llama 3.1 70B's shape decides."""

    def decide(_: Results) -> Decided:
        sizes = {name: weight_bytes(SHAPES[SEVENTY], name) / GB for name in formats}
        template = "{size:.1f} GB" if len(sizes) == 1 else "{name}: {size:.1f} GB"
        found = joined(", ", [Sentence(template, name=name, size=size) for name, size in sizes.items()])
        holds = all(about(low, size, high or low) for size in sizes.values())
        return plain(holds), Sentence("{sizes}, computed from the shape of Llama 3.1 70B, embedding and head included", sizes=found)

    return Test(ABOUT_RULE, decide)


def fits(device: str, count: int, format_name: str, context: int) -> Test:
    """The claim that so many GPUs hold a 70B with a context."""

    def decide(_: Results) -> Decided:
        found = fit(SHAPES[SEVENTY], format_name, context, device_named(device)["memory_gb"], count)
        return plain(found.holds), explain(SEVENTY, format_name, context, device, count)

    rule = f"holds where weights and an FP16 cache of {context:,} tokens fit in {USABLE:.0%} of the memory (lesson 6's planner)"
    return Test(rule, decide)


GUIDE_GROUPS = 128  # the group size of the guide's recipes, and of their names in these rules


def of_this_run(results: Results, name: str) -> str:
    """The recipe that stands for the guide's in these results: "autoawq-w4g128", or "autoawq-w4g64" where 64 divides the model's rows."""
    return name.replace(f"g{GUIDE_GROUPS}", f"g{results.get('group-size', GUIDE_GROUPS)}")


def loss_within(names: Sequence[str], least: float, most: float) -> Test:
    """The claim that perplexity rises by `least` to `most` percent in every one of the named measurements."""

    def decide(results: Results) -> Decided:
        verdicts, texts = [], []
        for name in (of_this_run(results, name) for name in names):
            quality = results[f"quality/{name}"]
            rise = 100 * math.expm1(quality["loss_increase"])
            error = (100 + rise) * (quality["loss_increase_stderr"] or 0)  # first order
            verdicts.append(between(least, rise, most, error))
            texts.append(Sentence("perplexity {rise} ± {error:.2f} % ({name})", rise=signed(rise, 2), error=error, name=name))
        return worst(verdicts), joined("; ", texts)

    return Test(f"read as a rise of {least:g} to {most:g} %; within noise where a limit lies within twice the standard error", decide)


def worst(verdicts: Sequence[str]) -> str:
    """The verdict on several parts together: one that fails, fails all."""
    return next((verdict for verdict in (FAILS, NOISE) if verdict in verdicts), HOLDS)


def nearer(results: Results, better: str, other: str) -> tuple[str, float, float]:
    """Whether one artifact is nearer to the original than another on the same windows; how much, and the paired standard error."""
    pair = [results[f"quality/{name}"]["kl_windows"] for name in (other, better)]
    difference, error = paired_difference(*pair)
    return beyond(difference, error), difference, error


def lower(better: str, other: str) -> Test:
    """The claim that one artifact is better than another, by KL divergence to the original."""

    def decide(results: Results) -> Decided:
        first, second = of_this_run(results, better), of_this_run(results, other)
        verdict, difference, error = nearer(results, first, second)
        kl = [results[f"quality/{name}"]["kl"] for name in (first, second)]
        text = "KL {better:.5f} ({first}) against {worse:.5f} ({second}) nats/token; paired difference {difference} ± {error:.5f}"
        found = {"first": first, "second": second, "difference": signed(difference, 5), "error": error}
        return verdict, Sentence(text, better=kl[0], worse=kl[1], **found)

    return Test("by KL to the original, paired window by window; within noise below twice the standard error", decide)


def faster(quicker: str, slower: str, factor: float = 1.25) -> Test:
    """The claim that one recipe quantizes sooner than another."""

    def decide(results: Results) -> Decided:
        names = [of_this_run(results, name) for name in (quicker, slower)]
        first, second = (results[f"cost/{name}"]["seconds"] for name in names)
        verdict = NOISE if 1 / factor < first / second < factor else plain(first < second)
        text = "{first:.1f} s to quantize ({quicker}) against {second:.1f} s ({slower})"
        return verdict, Sentence(text, first=first, second=second, quicker=names[0], slower=names[1])

    return Test(f"each was timed once: a difference of less than {factor - 1:.0%} is noise", decide)


def below(record: str, better: str, other: str, variant: str) -> Test:
    """The claim that one way's output error, in a record of errors by way, is below another's; `variant` says what both have in common."""

    def decide(results: Results) -> Decided:
        if better not in results[record]:
            return UNTESTABLE, Sentence("needs a model with layers for it ({better}): lesson 4 says which rows it takes", better=better)
        found = {"first": results[record][better], "second": results[record][other], "better": better, "other": other, "variant": variant}
        text = "{variant}: output error {first:.4g} ({better}) against {second:.4g} ({other}), mean over layers"
        return plain(found["first"] < (1 - MARGIN) * found["second"]), Sentence(text, **found)

    return Test(
        f"by the layers' output error on the calibration text (geometric mean), less by more than {100 * MARGIN:g} %; it has no noise but "
        "that of the text",
        decide,
    )


def settings(name: str, expected: Mapping[str, Any]) -> Test:
    """The claim that a library makes its checkpoint with these settings; read back from the artifact's config.json."""

    def decide(results: Results) -> Decided:
        stored = results[f"settings/{of_this_run(results, name)}"]
        found = {key: stored.get(key) for key in expected}
        other = results.get("group-size", GUIDE_GROUPS) != GUIDE_GROUPS
        verdict = UNTESTABLE if other else plain(found == dict(expected))
        said = {"settings": ", ".join(f"{key}: {value}" for key, value in found.items()), "size": GUIDE_GROUPS}
        if other:
            return verdict, Sentence("needs a model whose rows groups of {size} divide; the artifact's config.json says {settings}", **said)
        return verdict, Sentence("the artifact's config.json says {settings}", **said)

    return Test("made with these options; read back from the checkpoint", decide)


AT_ONCE = (
    "{ceiling:.0f} tok/s is the most that {devices} can generate, reading {read:.1f} GB of weights a token; "
    "the guide's {claimed:g} are {share:.0%} of it"
)
IN_TURN = (
    "{ceiling:.0f} tok/s is the most that {devices} can generate, reading {read:.1f} GB of weights a token, one device after the other; "
    "the guide's {claimed:g} are {share:.0%} of it"
)


def speed_of_70b(device: str, count: int, format_name: str, claimed: float, in_turn: bool = False) -> Test:
    """The claim that a 70B generates `claimed` tokens/s at batch 1: refuted where the devices' bandwidth does not allow it.

    `in_turn`: layers lie on one device after the other, so that one reads at a time, as llama.cpp and transformers do by default;
    else each device reads its share at once (tensor parallelism).
    """

    def decide(_: Results) -> Decided:
        shape, one = SHAPES[SEVENTY], device_named(device)
        ceiling = (1 if in_turn else count) * one["bandwidth_gb_s"] * GB / read_bytes(shape, format_name)
        held = fit(shape, format_name, 1024, one["memory_gb"], count, usable=1.0)
        found = {
            "ceiling": ceiling, "devices": f"{count} × {device}", "read": read_bytes(shape, format_name) / GB, "claimed": claimed,
            "share": claimed / ceiling, "needed": held.needed, "usable": held.usable,
        }  # fmt: skip
        text = Sentence(AT_ONCE if not in_turn or count == 1 else IN_TURN, **found)
        if not held.holds:
            more = "{ceiling}; weights and a cache of 1,024 tokens take {needed:.1f} GB, more than the {usable:.0f} GB that there are"
            return FAILS, Sentence(more, **found | {"ceiling": text})
        if claimed > ceiling:
            return FAILS, text
        return UNTESTABLE, Sentence("{ceiling}; the rest needs {devices} and the 70B", **found | {"ceiling": text})

    return Test(
        "does not hold above the ceiling that memory bandwidth sets for reading the weights (no cache, as the guide names no context), or "
        "beyond memory; else only the machine can tell",
        decide,
    )


def documented(holds: bool, source: str) -> Test:
    """A claim about a runtime's features, decided by its own documentation."""
    return Test("by the runtime's own documentation", lambda _: (plain(holds), source))
