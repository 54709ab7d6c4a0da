"""Lesson 6: what memory a model takes, what a load does to its users, and which format gives most under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qlab.evaluate.quality import Quality
from qlab.plan.pace import INT4
from qlab.plan.plan import Plan
from qlab.serve.crowd import NEAR, Served, leading
from qlab.serve.load import Level, saturation
from qlab.show.titles.distances import order
from qlab.workbook.language.spoken import enumerated, say


def memory(model: str, plans: Mapping[str, Plan], context: int, sequences: int) -> str:
    """Weights and cache by format: what FP16 and 4 bits take, and whether the cache is most of the latter."""
    plan = plans[INT4]
    values = {
        "model": model, "sequences": sequences, "context": context, "format": INT4, "four": plan.total, "half": plans["FP16"].total,
        "share": plan.cache / plan.total,
    }  # fmt: skip
    if plan.cache > plan.weights:
        return say("{model}, {sequences} × {context:,} tokens: {half:.3g} GB in FP16, {four:.3g} in {format}; "
                   "the cache is {share:.0%} of that, more than the weights", **values)  # fmt: skip
    return say("{model}, {sequences} × {context:,} tokens: {half:.3g} GB in FP16, {four:.3g} in {format}; "
               "the cache is {share:.0%} of that", **values)  # fmt: skip


def caches(found: Mapping[str, Quality], weights: Quality) -> str:
    """Whether 4 bits of cache move the predictions more than 4 bits of `weights`, on the same windows."""
    if "q4_0" not in found:
        return say("This model's cache cannot be rounded to 4 bits here")
    cache = found["q4_0"]
    values = {"cache": cache.kl or 0.0, "weights": weights.kl or 0.0}
    turned = order(cache, weights)
    if turned < 0:
        return say("4 bits of cache cost less than 4 bits of weights: KL {cache:.5f} against {weights:.5f}", **values)
    if turned > 0:
        return say("4 bits of cache cost more than 4 bits of weights: KL {cache:.5f} against {weights:.5f}", **values)
    return say("4 bits of cache are not told apart from 4 bits of weights: KL {cache:.5f} against {weights:.5f}", **values)


def load(levels: Sequence[Level]) -> str:
    """Where throughput stops growing, and how much longer the first token then takes."""
    alone, crowd = levels[0], levels[-1]
    knee = saturation(levels)
    values = {
        "knee": knee, "crowd": crowd.concurrency, "times": crowd.ttft["p50"] / max(alone.ttft["p50"], 1e-9),
    }  # fmt: skip
    if knee is None:
        return say("Throughput still grew with {crowd} at a time; the first token took {times:.1f} times as long as alone",
                   **values)  # fmt: skip
    return say(
        "Throughput hardly grows beyond {knee} at a time; with {crowd} the first token takes {times:.1f} times as long as alone", **values
    )


def crowd(served: Sequence[Served]) -> str:
    """Which format gives most tokens a second with fewest requests at a time and with most, and whether the formats change places."""
    led = leading(served)
    if not led:
        return say("No format gave an answer")
    few, many = min(led), max(led)
    values = {"few": few, "many": many, "first": enumerated(led[few]), "last": enumerated(led[many]), "near": NEAR}
    rates = sorted((one.throughput(many) for one in served if one.throughput(many)), reverse=True)
    if len([one for one in served if one.levels]) == 1:
        return say("{last} gives {rate:,.0f} tokens/s with {many} at a time; no other format was served", rate=rates[0], **values)
    if not set(led[few]) & set(led[many]):
        return say("The formats change places: most tokens/s at {few} at a time from {first}, at {many} from {last}", **values)
    if all(names == led[few] for names in led.values()) and len(led[few]) == 1:
        if len(rates) == 1:
            return say("{first} gives most tokens/s at every load; with {many} at a time no other format answered", **values)
        times = rates[0] / rates[1]
        return say("{first} gives most tokens/s at every load; with {many} at a time {times:.1f} times the next", times=times, **values)
    if led[few] == led[many] and len(led[few]) == 1:
        return say("{first} gives most tokens/s at {few} and at {many} at a time, but not at every load between", **values)
    return say("Most tokens/s at {few} at a time: {first}; at {many}: {last} (formats within {near:.0%} are not told apart)", **values)
