"""Why so many of a device hold a model, or do not, in sentences."""

from __future__ import annotations

from qlab.plan.plan import SHAPES, USABLE, device_named, fit, plan, splits
from qlab.support.wording import Sentence, joined, listed


def explain(name: str, format_name: str, context: int, device_name: str, count: int) -> str:
    """Why so many of a device do, or do not, hold the model `name` of SHAPES; and how many do."""
    shape, device = SHAPES[name], device_named(device_name)
    found = fit(shape, format_name, context, device["memory_gb"], count)
    sums = Sentence(
        "{name} in {format} on {count} × {device}: {weights:.1f} GB of weights and {cache:.1f} GB of cache for {context:,} tokens are "
        "{needed:.1f} GB; {share:.0%} of {count} × {memory} GB are {usable:.1f} GB.",
        name=name, format=format_name, count=count, device=device_name, weights=found.weights, cache=found.needed - found.weights,
        context=context, needed=found.needed, share=USABLE, memory=device["memory_gb"], usable=found.usable,
    )  # fmt: skip
    if found.holds:
        return joined(" ", [sums, Sentence("It fits, up to a context of {longest:,} tokens.", longest=found.longest)])
    if found.longest:
        why = Sentence("It does not fit; a context of {longest:,} tokens would.", longest=found.longest)
    else:
        why = Sentence("It does not fit; the weights alone are too large.")
    enough = next((f["count"] for f in plan(shape, format_name, context).fits if f["device"] == device["name"]), None)
    if enough is None:
        return joined(" ", [sums, why, Sentence("Eight do not hold it either.")])
    skipped = [str(n) for n in range(count + 1, enough) if not splits(shape, n)]
    if not skipped:
        return joined(" ", [sums, why, Sentence("It takes {enough}.", enough=enough)])
    parting = Sentence(
        "{counts} cannot share {heads} heads and {kv_heads} KV heads evenly (tensor parallelism gives each as many), so it takes {enough}.",
        counts=listed(skipped), heads=shape.heads, kv_heads=shape.kv_heads, enough=enough,
    )  # fmt: skip
    return joined(" ", [sums, why, parting])
