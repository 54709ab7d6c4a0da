"""Lesson 6: what memory a model takes, and what a load does to its users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qlab.plan.plan import Plan
from qlab.serve.load import Level, saturation
from qlab.workbook.language.spoken import say


def memory(model: str, plans: Mapping[str, Plan], context: int, sequences: int) -> str:
    """Weights and cache by format: what the least and FP16 take, and whether the cache is most of the least."""
    least = min(plans, key=lambda name: plans[name].total)
    plan = plans[least]
    values = {
        "model": model, "sequences": sequences, "context": context, "format": least, "least": plan.total, "half": plans["FP16"].total,
        "share": plan.cache / plan.total,
    }  # fmt: skip
    if plan.cache > plan.weights:
        return say("{model}, {sequences} × {context:,} tokens: {least:.3g} GB in {format}, {half:.3g} in FP16; "
                   "the cache is {share:.0%} of the least, more than the weights", **values)  # fmt: skip
    return say("{model}, {sequences} × {context:,} tokens: {least:.3g} GB in {format}, {half:.3g} in FP16; "
               "the cache is {share:.0%} of the least", **values)  # fmt: skip


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
        "Throughput stops growing beyond {knee} at a time; with {crowd} the first token takes {times:.1f} times as long as alone", **values
    )
