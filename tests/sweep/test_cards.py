"""What `qlab evaluate --json` printed, on the card of an artifact."""

from __future__ import annotations

from qlab.sweep.cards import shown

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
