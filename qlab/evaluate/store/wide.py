"""The table of results as people read it: a row for each artifact in each runtime, a column for each metric under the same conditions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pandas as pd

from qlab.evaluate.store.results import machine_of

COMPUTED_WITH = ("dtype", "kernel")  # what an artifact has by its format in a runtime, and figures of artifacts may differ in


def wide(table: pd.DataFrame, metrics: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """A row for each model, artifact, runtime and what it computes with there; a column for each of `metrics` and each of the conditions
    that it was measured under: text and windows, reference, prompt, machine. Figures of different conditions never share a column.

    Cells are text: the figure with its error, or the reason that there is none. What is true of an artifact in every runtime (its
    quality) stands in each of its rows. With the table come the conditions in words, a line for each number in the columns' names.
    """
    parts = [measured_under(*row) for row in table[["runtime", "conditions", "provenance"]].itertuples(index=False)]
    table = table.assign(computed=[computed for computed, _ in parts], under=[under for _, under in parts])
    valued = table[table["value"].notna()]
    found = {metric: list(valued["under"][valued["metric"] == metric].unique()) for metric in metrics}
    numbers = {under: number for number, under in enumerate(dict.fromkeys(u for unders in found.values() for u in unders if u), 1)}
    columns = {
        f"{metric} [{numbers[under]}]" if under else metric: (metric, under) for metric in metrics for under in found[metric] or [""]
    }
    rows = []
    for (model, artifact, fingerprint), group in table.groupby(["model", "artifact", "fingerprint"], sort=False):
        for runtime, computed in places(group):
            cells = {title: cell_in(group, runtime, computed, *column) for title, column in columns.items()}
            names = {
                "model": model,
                "artifact": artifact,
                "files": fingerprint[:8],
                "runtime": runtime or "—",
                "computed with": computed or "—",
            }
            rows.append(names | cells)
    return pd.DataFrame(rows), [f"[{number}] {under}" for under, number in numbers.items()]


def measured_under(runtime: str, conditions: str, provenance: str) -> tuple[str, str]:
    """What a figure was computed with, in words, which is its row's; and all else that it was measured under, its column's."""
    under = json.loads(conditions)
    if runtime and (machine := machine_of(provenance)):
        under["machine"] = machine
    computed = ", ".join(str(under.pop(name)) for name in COMPUTED_WITH if runtime and name in under)
    return computed, ", ".join(f"{name} {value}" for name, value in under.items())


def places(group: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """The rows of an artifact: runtimes, each with what it computed with there; one of no runtime where it ran in none."""
    runtimes = [name for name in group["runtime"].unique() if name] or [""]
    for runtime in runtimes:
        measured = group[(group["runtime"] == runtime) & group["value"].notna()]
        yield from ((runtime, computed) for computed in (measured["computed"].unique() if runtime and len(measured) else [""]))


def cell_in(group: pd.DataFrame, runtime: str, computed: str, metric: str, under: str) -> str:
    """The figures of an artifact in one cell, the oldest first: those of its runtime, else those of no runtime, else why there is none."""
    named = group[group["metric"] == metric]
    valued = named[named["value"].notna() & (named["under"] == under)]
    own = valued[(valued["runtime"] == runtime) & ((valued["computed"] == computed) | (runtime == ""))]
    chosen = own if len(own) else valued[valued["runtime"] == ""]
    if not len(chosen):
        chosen = named[named["value"].isna() & (named["runtime"] == runtime)].tail(1)
    return ", ".join(cell(figure) for _, figure in chosen.iterrows()) or "not measured"


def cell(figure: pd.Series) -> str:
    """A figure as text: bytes in MB, the error behind ±."""
    if pd.isna(figure["value"]):
        return f"no: {(figure['reason'].splitlines() or ['nobody said why'])[0]}"
    scale = 1e6 if figure["unit"] == "B" else 1e9 if figure["unit"] == "B/s" else 1
    unit = {"B": " MB", "B/s": " GB/s"}.get(figure["unit"], "")
    error = "" if pd.isna(figure["error"]) else f" ± {figure['error'] / scale:.2g}"
    return f"{figure['value'] / scale:.4g}{error}{unit}"
