"""The cards of a sweep's artifacts, once they are measured (qlab.artifacts.card)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qlab.artifacts.card import Figures, original_of, renew_card
from qlab.artifacts.manifest import made_from
from qlab.sweep.jobs import Job, Subject
from qlab.sweep.plan import ORIGINAL
from qlab.sweep.results import DONE, Store

# Name, form and factor of a figure of `qlab evaluate`, and the name of its standard error.
ROWS = (
    ("KL divergence to the original (nats/token)", "kl", "kl_stderr", ".3g", 1),
    ("99th percentile of it over single tokens", "kl_p99", "", ".3g", 1),
    ("loss increase over the original (nats/token)", "loss_increase", "loss_increase_stderr", "+.3g", 1),
    ("perplexity", "perplexity", "stderr", ".3f", 1),
    ("same most likely token as the original (%)", "top1", "", ".1f", 100),
)


def renew_cards(jobs: Sequence[Job], store: Store, models: Mapping[str, Subject]) -> None:
    """Write the figures of what was evaluated into the cards of the artifacts that are there. One that another plan has put there since is
    not what was evaluated: its card stays.

    Raises:
        UserError: an artifact's manifest is damaged.
        OSError: a card cannot be written.
    """
    originals = {called: original_of(source) for called, (_, source) in models.items()}
    for job in jobs:
        if job.kind != "evaluate" or job.recipe == ORIGINAL or not (there := made_from(Path(job.place))):
            continue
        if (found := store.read(job.key)) and found.state == DONE and found.figures.get("made_from") == there:
            renew_card(Path(job.place), originals[job.model], shown(found.figures))


def shown(figures: Mapping[str, Any]) -> Figures:
    """What `qlab evaluate --json` printed, as a card shows it."""
    rows = []
    for name, value, error, form, factor in ROWS:
        if (found := figures.get(value)) is not None:
            rows.append((name, format(found * factor, form), format(figures[error] * factor, form.lstrip("+")) if error else ""))
    rows += [(f"{s['task']}, {s['metric']}", f"{s['value']:.4f}", f"{s['stderr']:.4f}") for s in figures.get("tasks", [])]
    read = ", ".join(str(one["name"]) for one in figures.get("text", []))
    how = f"Measured by qlab evaluate on {figures.get('tokens', 0):,} tokens of {read}: {figures.get('protocol', '')}."
    return Figures(rows, how)
