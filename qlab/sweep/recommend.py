"""What to take of a sweep's table: the nearest format that fits the constraints and passes the gates, and what the next one would cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from qlab.artifacts.budget import parse_bytes, size_text
from qlab.plan.plan import USABLE, cache_bytes
from qlab.plan.shapes import config_shape
from qlab.sweep.jobs import Subject
from qlab.sweep.plan import ORIGINAL, Sweep
from qlab.sweep.results import DONE


def caches(sweep: Sweep, models: Mapping[str, Subject]) -> dict[str, float]:
    """Bytes of the KV cache that the constraints ask for, by model."""
    asked = sweep.constraints
    return {
        called: cache_bytes(config_shape(source.config, source.name), asked.context, asked.sequences)
        for called, (_, source) in models.items()
    }


def fitting(table: pd.DataFrame, sweep: Sweep, cache: dict[str, float]) -> pd.DataFrame:
    """The table with `needed`, the bytes of weights and cache, `fits` and `passes`: whether the constraints hold, and the gates."""
    found = table.copy()
    if "bytes" not in found:
        found["bytes"] = None
    found["needed"] = [size + cache[model] if pd.notna(size) else None for size, model in zip(found["bytes"], found["model"])]
    memory = parse_bytes(sweep.constraints.memory) if sweep.constraints.memory else None
    found["fits"] = [memory is None or (pd.notna(needed) and needed <= USABLE * memory) for needed in found["needed"]]
    originals = found[found["format"] == ORIGINAL].set_index("model")["perplexity"].to_dict() if "perplexity" in found else {}
    found["passes"] = [passes(row, originals.get(row["model"]), sweep.gates) for row in found.to_dict("records")]
    return found


def passes(row: dict[str, Any], original: float | None, gates: dict[str, float]) -> bool:
    """Whether a row is within the gates: KL at most so many nats, perplexity at most so many times the `original`'s; a gate on perplexity
    is not passed where that is unknown."""
    if row["state"] != DONE:
        return False
    most = gates | ({"perplexity": gates["perplexity"] * original} if "perplexity" in gates and original else {})
    return all(row[gate] is not None and row[gate] <= bound for gate, bound in most.items())


def recommendation(table: pd.DataFrame, sweep: Sweep) -> list[str]:
    """In words, for each model: the format of least KL among those that fit and pass, and the smallest that is not told apart from it; or
    why there is none. Models are not compared with each other by KL, which is to each one's own original: by perplexity, on one text."""
    asked = f"{sweep.constraints.sequences} x {sweep.constraints.context:,} tokens"
    asked += f" in {sweep.constraints.memory}" if sweep.constraints.memory else ""
    found = []
    for model, rows in table.groupby("model", sort=False):
        able = rows[(rows["state"] == DONE) & rows["fits"] & rows["passes"] & (rows["format"] != ORIGINAL)]
        if not len(able):
            found.append(f"{model}: no format fits {asked} and passes the gates.")
            continue
        best = able.loc[able["kl"].astype(float).idxmin()]
        distance = f"KL {best['kl']:.4f} ± {best['kl_stderr']:.4f}"
        text = f"{model}, {asked}: {best['format']}, {distance}, {size_text(best['needed'])} with its cache."
        smaller = able[able["needed"] < best["needed"]]
        if len(smaller):
            next_best = smaller.loc[smaller["kl"].astype(float).idxmin()]
            text += f" Next: {next_best['format']}, {size_text(best['needed'] - next_best['needed'])} less, {cost(best, next_best)}."
        found.append(text)
    return found


def cost(best: pd.Series, other: pd.Series) -> str:
    """By how much the other is farther from the original, or that the figures do not tell."""
    difference, error = other["kl"] - best["kl"], (other["kl_stderr"] ** 2 + best["kl_stderr"] ** 2) ** 0.5
    if difference <= 2 * error:
        return "a difference in KL within noise"
    return f"{difference:.4f} nats a token farther from the original"
