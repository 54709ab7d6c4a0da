"""Figures are held against the accepted ones: within their noise nothing is said, beyond it what moved and how far."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from qlab.support.errors import UserError
from qlab.sweep.accepted import accept, accepted_file, complaints, read_accepted
from qlab.sweep.plan import Sweep
from qlab.sweep.recommend import fitting

GATED = Sweep.model_validate({"models": ["m"], "recipes": ["a"], "gates": {"kl": 0.1}})


def row(name: str, kl: float | None, state: str = "done") -> dict[str, object]:
    figures = {"kl": kl, "kl_stderr": 0.001, "loss_increase": 0.02, "loss_increase_stderr": 0.002, "perplexity": 10.0, "stderr": 0.5}
    return {"model": "m", "format": name, "state": state, "why": "", "bytes": 1e6} | (figures if state == "done" else {})


def table(*rows: dict[str, object]) -> pd.DataFrame:
    return fitting(pd.DataFrame(list(rows)), GATED, {"m": 0.0})


BEFORE = (row("original", 0.0) | {"kl_stderr": 0.0}, row("a", 0.05), row("b", 0.08))


def said(folder: Path, *rows: dict[str, object]) -> list[str]:
    """What is said of these rows where BEFORE was accepted."""
    file = accepted_file(folder / "plan.yaml")
    assert file.name == "plan.accepted.json"
    accept(file, table(*BEFORE))
    return complaints(table(*rows), read_accepted(file))


def test_what_stays_within_its_noise_is_as_accepted(tmp_path: Path) -> None:
    assert said(tmp_path, *BEFORE) == []
    assert said(tmp_path, BEFORE[0], row("a", 0.0527), row("b", 0.0773)) == []  # 2 x sqrt(0.001^2 + 0.001^2) = 0.0028
    assert said(tmp_path, BEFORE[0] | {"kl": 1e-9}, *BEFORE[1:]) == []  # of the original only the perplexity counts


def test_what_moves_beyond_it_is_told(tmp_path: Path) -> None:
    (worse,) = said(tmp_path, BEFORE[0], row("a", 0.053), BEFORE[2])
    assert worse == "m a: kl moved from 0.05 to 0.053, by more than 2 standard errors of the difference (0.0014)"
    (better,) = said(tmp_path, BEFORE[0], row("a", 0.047), BEFORE[2])
    assert "from 0.05 to 0.047" in better
    (loss,) = said(tmp_path, *BEFORE[:2], BEFORE[2] | {"loss_increase": 0.03})
    assert loss.startswith("m b: loss_increase moved from 0.02 to 0.03")
    (original,) = said(tmp_path, BEFORE[0] | {"perplexity": 12.0}, *BEFORE[1:])
    assert original.startswith("m original: perplexity moved")


def test_what_is_new_or_missing_or_beyond_the_gates_is_told(tmp_path: Path) -> None:
    assert said(tmp_path, *BEFORE, row("c", 0.01)) == ["m c was measured, and never accepted"]
    assert said(tmp_path, *BEFORE[:2], row("b", None, "failed")) == ["m b was accepted, and is not measured"]
    beyond = said(tmp_path, *BEFORE[:2], row("b", 0.2))
    assert beyond[0] == "m b does not pass the gates"
    assert len(beyond) == 2


def test_a_file_that_is_not_there_or_damaged_is_one_message(tmp_path: Path) -> None:
    file = accepted_file(tmp_path / "plan.yaml")
    with pytest.raises(UserError, match="run the sweep with --accept first"):
        read_accepted(file)
    for content in (b"", b"{}", b'{"figures": {"m": {"a": {"kl": {"value": "x", "error": 1.0}}}}}', b"\xff"):
        file.write_bytes(content)
        with pytest.raises(UserError, match="holds no accepted figures"):
            read_accepted(file)
