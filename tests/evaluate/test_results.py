"""The table of results: figures come back with what they were measured under; newer ones take the place of older."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qlab.evaluate.quality import Quality
from qlab.evaluate.results import Figure, Subject, add, quality_figures, read, runtime_figures, wide
from qlab.support.errors import UserError

FACTS = {"date": "2026-11-24 09:00 UTC", "commit": "abc", "machine": {"cores": 2}}
Q4 = Subject("embedded-1234", "q4_k_m", "f" * 16)


def test_what_is_written_is_read_with_its_provenance(tmp_path: Path) -> None:
    store = tmp_path / "new" / "results.sqlite"
    quality = Quality(20.0, 0.5, 100, 50, 0.01, 0.001, 0.9, 0.002, 0.001, [0.01, 0.01])
    add(store, FACTS, [(Q4, quality_figures(quality, "held-out", "embedded"))])
    table = read(store).set_index("metric")
    assert table.loc["perplexity", "value"] == 20.0
    assert table.loc["kl", "error"] == 0.001
    assert json.loads(table.loc["kl", "conditions"]) == {"text": "held-out", "tokens": 100, "window": 50, "reference": "embedded"}
    assert json.loads(table.loc["kl", "provenance"]) == FACTS
    assert set(table["date"]) == {FACTS["date"]}


def test_the_newest_counts_and_the_older_are_kept(tmp_path: Path) -> None:
    store = tmp_path / "r.sqlite"
    for value in (1.0, 2.0):
        add(store, FACTS, [(Q4, [Figure("kl", value, 0.1, "nats/token", {})])])
    assert list(read(store)["value"]) == [2.0]
    assert list(read(store, every=True)["value"]) == [1.0, 2.0]


def test_a_row_for_each_runtime_and_a_reason_for_each_gap(tmp_path: Path) -> None:
    store = tmp_path / "r.sqlite"
    served = Subject(Q4.model, Q4.artifact, Q4.fingerprint, "llama.cpp")
    missing = Subject(Q4.model, Q4.artifact, Q4.fingerprint, "vLLM")
    speed = [Figure("generation", 100.0, 3.0, "tok/s", {}), Figure("memory loaded", 31e6, None, "B", {})]
    add(store, FACTS, [(Q4, [Figure("kl", 0.5, 0.1, "nats/token", {})]), (served, speed), (missing, runtime_figures(None, "no vLLM here"))])
    table = wide(read(store), ["kl", "generation", "memory loaded", "prompt"]).set_index("runtime")
    assert list(table["kl"]) == ["0.5 ± 0.1"] * 2
    assert table.loc["llama.cpp", "generation"] == "100 ± 3"
    assert table.loc["llama.cpp", "memory loaded"] == "31 MB"
    assert table.loc["vLLM", "generation"] == "no: no vLLM here"
    assert table.loc["llama.cpp", "prompt"] == "not measured"


def test_a_file_that_is_no_table_is_refused_and_left_alone(tmp_path: Path) -> None:
    store = tmp_path / "notes.txt"
    store.write_text("my notes, not a database " * 50)
    for use in (lambda: read(store), lambda: add(store, FACTS, [(Q4, [Figure("kl", 1.0, None, "", {})])])):
        with pytest.raises(UserError, match="cannot be used as a table"):
            use()
    assert store.read_text().startswith("my notes")
    with pytest.raises(UserError, match="no results at"):
        read(tmp_path / "nothing.sqlite")


def test_a_run_is_added_whole_or_not_at_all(tmp_path: Path) -> None:
    store = tmp_path / "r.sqlite"
    add(store, FACTS, [(Q4, [Figure("kl", 1.0, None, "", {})])])
    unstorable = Figure("kl", object(), None, "", {})  # type: ignore[arg-type]
    with pytest.raises(UserError):
        add(store, FACTS, [(Q4, [Figure("top1", 1.0, None, "", {}), unstorable])])
    with sqlite3.connect(store) as database:
        assert database.execute("SELECT count(*) FROM measurements").fetchone() == (1,)


def test_what_a_killed_process_had_added_in_part_is_taken_back_by_who_reads(tmp_path: Path) -> None:
    """More rows than SQLite holds in memory are written before the end; its journal beside them then says what was there."""
    store = tmp_path / "r.sqlite"
    add(store, FACTS, [(Q4, [Figure("kl", 1.0, None, "", {})])])
    code = "import os, signal, sqlite3, sys\ndatabase = sqlite3.connect(sys.argv[1])\ndatabase.execute('PRAGMA cache_size = 5')\n"
    code += "for _ in range(2000): database.execute('INSERT INTO measurements SELECT * FROM measurements LIMIT 1')\n"
    code += "os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", code, str(store)]).returncode == -signal.SIGKILL
    assert store.with_name("r.sqlite-journal").exists()
    assert len(read(store, every=True)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["r.sqlite"]


def test_a_full_disk_is_said_and_the_table_stays_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "r.sqlite"
    add(store, FACTS, [(Q4, [Figure("kl", 1.0, None, "", {})])])
    connect = sqlite3.connect

    def small(*arguments: Any, **options: Any) -> sqlite3.Connection:
        database = connect(*arguments, **options)
        database.execute("PRAGMA max_page_count = 3")
        return database

    monkeypatch.setattr(sqlite3, "connect", small)
    with pytest.raises(UserError, match=f"the disk is full .* needed in {tmp_path}"):
        add(store, FACTS, [(Q4, [Figure("kl", 1.0, None, "", {})] * 200)])
    assert len(read(store, every=True)) == 1
