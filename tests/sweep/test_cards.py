"""What `qlab evaluate --json` printed, on the card of an artifact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qlab.artifacts.manifest import COST, MANIFEST, made_from
from qlab.models.opening import locate
from qlab.sweep import cards
from qlab.sweep.cards import renew_cards, shown
from qlab.sweep.jobs import Job, Subject
from qlab.sweep.results import DONE, Result, Store

PRINTED = {
    "perplexity": 23.75531, "stderr": 1.61487, "tokens": 8176, "window": 512, "kl": 0.000203, "kl_stderr": 0.0000049, "top1": 0.9907,
    "loss_increase": 0.000605, "loss_increase_stderr": 0.000252, "kl_p99": 0.000793, "text": [{"name": "python-reference", "windows": 16}],
    "protocol": "windows of 512 tokens", "tasks": [{"task": "mmlu", "metric": "acc", "value": 0.25, "stderr": 0.01}],
}  # fmt: skip


def test_figures_have_their_errors_beside_them() -> None:
    found = shown(PRINTED)
    assert found.rows == [
        ("KL divergence to the original (nats/token)", "0.000203", "4.9e-06"),
        ("99th percentile of it over single tokens", "0.000793", ""),
        ("loss increase over the original (nats/token)", "+0.000605", "0.000252"),
        ("perplexity", "23.755", "1.615"),
        ("same most likely token as the original (%)", "99.1", ""),
        ("mmlu, acc", "0.2500", "0.0100"),
    ]
    assert found.how == "Measured by qlab evaluate on 8,176 tokens of python-reference: windows of 512 tokens."


def artifact(folder: Path, calibration: str) -> str:
    """Notes as of an artifact; the hash of what it is made from."""
    folder.mkdir(exist_ok=True)
    inputs = {"model": "m", "recipe": {}, "calibration": {"sha256": calibration}, "versions": {}, "device": "cpu"}
    (folder / MANIFEST).write_text(json.dumps({"inputs": inputs}))
    (folder / COST).write_text('{"seconds": 1.0, "peak_bytes": 1}')
    return made_from(folder)


def test_figures_of_an_artifact_that_was_replaced_do_not_reach_the_new_ones_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renewed: list[str] = []
    monkeypatch.setattr(cards, "renew_card", lambda folder, original, figures: renewed.append(figures.how))
    place, store, models = tmp_path / "nf4", Store(tmp_path / "jobs"), {"m": Subject("embedded", locate("embedded"))}
    store.folder.mkdir()
    job = Job("evaluate", "m", "nf4", (), "key", place=str(place))
    renew_cards([job], store, models)  # neither there nor measured
    measured = artifact(place, "first")
    store.write(job.key, Result(job=job.name, state=DONE, seconds=1.0, figures=PRINTED | {"made_from": measured}))
    renew_cards([job], store, models)
    assert len(renewed) == 1
    assert artifact(place, "second") != measured
    renew_cards([job], store, models)
    assert len(renewed) == 1
    assert artifact(place, "first") == measured
    renew_cards([job], store, models)
    assert len(renewed) == 2
