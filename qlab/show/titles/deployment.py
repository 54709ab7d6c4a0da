"""Lesson 6: what memory a model takes, what a load does to its users, and which format gives most under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qlab.plan.pace import INT4
from qlab.plan.plan import Plan
from qlab.serve.crowd import NEAR, Served, leading
from qlab.serve.load import Level, saturation
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
