"""The table of results: figures come back with what they were measured under; newer ones take the place of older."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.cli import call
from qlab.evaluate.quality import Quality
from qlab.evaluate.store.results import COLUMNS, Figure, Subject, add, quality_figures, read, runtime_figures, score_figures
from qlab.evaluate.store.wide import wide
from qlab.evaluate.tasks import Score
from qlab.support.errors import UserError

FACTS = {"date": "2026-11-24 09:00 UTC", "commit": "abc", "machine": {}}
Q4 = Subject("embedded-1234", "q4_k_m", "f" * 16)


def test_what_is_written_is_read_with_its_provenance(tmp_path: Path) -> None:
    store = tmp_path / "new" / "results.sqlite"
    quality = Quality(20.0, 0.5, 100, 50, 0.01, 0.001, 0.9, 0.002, 0.001, [0.01, 0.01])
    add(store, FACTS, [(Q4, quality_figures(quality, {"text": "held-out"}, "embedded"))])
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
    shown, under = wide(read(store), ["kl", "generation", "memory loaded", "prompt"])
    table = shown.set_index("runtime")
    assert under == []
    assert list(table["kl"]) == ["0.5 ± 0.1"] * 2
    assert table.loc["llama.cpp", "generation"] == "100 ± 3"
    assert table.loc["llama.cpp", "memory loaded"] == "31 MB"
    assert table.loc["vLLM", "generation"] == "no: no vLLM here"
    assert table.loc["llama.cpp", "prompt"] == "not measured"


def quality_of(perplexity: float, tokens: int = 100, window: int = 50) -> Quality:
    return Quality(perplexity, 0.5, tokens, window, perplexity / 100, 0.001, 0.9, 0.002, 0.001, [0.01, 0.01])


TEXT = {"text": "held-out", "sha256": "aa", "dtype": "float32", "device": "cpu"}


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        (quality_figures(quality_of(2.0), TEXT | {"text": "wiki"}, "embedded"), "text wiki"),
        (quality_figures(quality_of(2.0), TEXT | {"sha256": "bb"}, "embedded"), "sha256 bb"),
        (quality_figures(quality_of(2.0, tokens=99), TEXT, "embedded"), "tokens 99"),
        (quality_figures(quality_of(2.0, window=25), TEXT, "embedded"), "window 25"),
        (quality_figures(quality_of(2.0), TEXT | {"device": "cuda"}, "embedded"), "device cuda"),
    ],
)
def test_figures_of_other_conditions_have_columns_of_their_own(other: list[Figure], differs: str, tmp_path: Path) -> None:
    store, awq = tmp_path / "r.sqlite", Subject(Q4.model, "awq", "a" * 16)
    first = quality_figures(quality_of(1.0), TEXT, "embedded")
    add(store, FACTS, [(Q4, quality_figures(quality_of(7.0), TEXT, "embedded")), (awq, first)])
    add(store, FACTS, [(Q4, first), (awq, other)])
    table, under = wide(read(store), ["perplexity", "kl"])
    assert list(table.columns[5:]) == ["perplexity [1]", "perplexity [2]", "kl [3]", "kl [4]"]
    assert differs in under[1]
    assert differs not in under[0]
    assert [list(row) for row in table.set_index("artifact").loc[["q4_k_m", "awq"]].iloc[:, 4:].to_numpy()] == [
        ["1 ± 0.5", "not measured", "0.01 ± 0.001", "not measured"],  # the newest of the same conditions
        ["1 ± 0.5", "2 ± 0.5", "0.01 ± 0.001", "0.02 ± 0.001"],
    ]


def test_distances_from_other_models_and_scores_on_other_documents_are_told_apart(tmp_path: Path) -> None:
    store, score = tmp_path / "r.sqlite", Score("heldout-cloze", "acc", 0.5, 0.1, 10)
    for reference in ("embedded 12345678", "embedded 87654321"):
        add(store, FACTS, [(Q4, quality_figures(quality_of(1.0), TEXT, reference))])
    for text in (TEXT, TEXT | {"sha256": "bb"}):
        add(store, FACTS, [(Q4, score_figures([score, Score("mmlu", "acc", 0.5, 0.1, 10)], {}, text))])
    table, under = wide(read(store), ["kl", "heldout-cloze acc", "mmlu acc"])
    assert [name for name in table if "[" in name] == ["kl [1]", "kl [2]", "heldout-cloze acc [3]", "heldout-cloze acc [4]", "mmlu acc [5]"]
    assert ["embedded 12345678" in under[0], "embedded 87654321" in under[1]] == [True, True]


def test_speeds_of_other_machines_prompts_and_kernels_are_told_apart(tmp_path: Path) -> None:
    """What the prompt was and the machine is are a column's; the numbers that a format is computed in are its row's."""
    store, served = tmp_path / "r.sqlite", Subject(Q4.model, Q4.artifact, Q4.fingerprint, "transformers")
    alone = {"device": "cpu", "dtype": "float32", "kernel": "Linear", "threads": "2", "pp": 512}
    machine = {"system": "Linux", "processor": "x86_64", "device": "CPU"}
    here, there = FACTS | {"machine": machine | {"cores": 2}}, FACTS | {"machine": machine | {"cores": 64}}
    for value, facts, under in (
        (1.0, here, alone),
        (2.0, here, alone),
        (3.0, here, alone | {"pp": 32}),
        (4.0, there, alone),
        (5.0, here, alone | {"dtype": "bfloat16"}),
        (6.0, here, alone | {"threads": "1"}),
    ):
        add(store, facts, [(served, [Figure("prompt", value, None, "tok/s", under)])])
    add(store, here, [(served, runtime_figures(None, "killed"))])
    table, lines = wide(read(store), ["prompt"])
    assert ["2 cores" in lines[0], "64 cores" in lines[2]] == [True, True]
    assert table["computed with"].tolist() == ["float32, Linear", "bfloat16, Linear"]
    assert table.iloc[:, 5:].to_numpy().tolist() == [["2", "3", "4", "6"], ["5", *["not measured"] * 3]]
    table, _ = wide(read(store), ["prompt", "generation"])
    assert table["generation"].tolist() == ["no: killed"] * 2


def test_a_table_on_the_terminal_names_its_conditions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "r.sqlite"
    add(store, FACTS, [(Q4, quality_figures(quality_of(1.0), TEXT | {"text": "[/red]\x1b[2J"}, "embedded"))])
    assert call(["results", "--store", str(store), "--metric", "kl"]) == 0
    shown = capsys.readouterr().out
    assert "[1] device cpu, dtype float32, reference embedded, sha256 aa, text [/red]\\x1b[2J, tokens 100" in shown
    assert "window 50" in shown


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


ROW = dict.fromkeys(COLUMNS, "") | {
    "model": "m",
    "artifact": "q4_k_m",
    "metric": "kl",
    "value": 1.0,
    "error": None,
    "conditions": "{}",
    "provenance": "{}",
}


def store_of(file: Path, *rows: dict[str, Any]) -> Path:
    """A table of results with `rows` as anybody may have written them, each given by how it differs from ROW."""
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(f"CREATE TABLE measurements ({', '.join(COLUMNS)})")
        for row in rows:
            database.execute(f"INSERT INTO measurements VALUES ({', '.join('?' * len(COLUMNS))})", tuple((ROW | row).values()))
    return file


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"value": "fast"}, "row 1: value is 'fast', expected a number or nothing"),
        ({"error": b"x"}, "expected a number or nothing"),
        ({"model": None}, "row 1: model is 'None', expected text"),
        ({"model": b"\xff"}, "expected text"),
        ({"value": None, "reason": None}, "row 1: reason is 'None', expected text"),
        ({"unit": "x" * 5000, "value": "y" * 5000}, "expected a number"),
        ({"conditions": "[]"}, "row 1: conditions is '[]', expected a JSON object"),
        ({"conditions": "[" * 5000}, "expected a JSON object"),
        ({"conditions": '{"a":' * 80 + "1" + "}" * 80}, "expected a JSON object"),
        ({"provenance": "today"}, "row 1: provenance is 'today', expected a JSON object"),
    ],
)
def test_a_row_of_wrong_types_is_one_message(row: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = store_of(tmp_path / "r.sqlite", row)
    assert call(["results", "--store", str(file)]) == 2
    printed = capsys.readouterr().err
    assert said in " ".join(printed.split())
    assert len(printed) < 1000


VALUES = st.one_of(st.none(), st.text(max_size=20), st.integers(-(2**63), 2**63 - 1), st.floats(), st.binary(max_size=8))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(COLUMNS, VALUES)), max_size=3), st.booleans())
def test_any_store_is_a_table_or_one_message(rows: list[dict[str, Any]], every: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = store_of(Path(folder) / "r.sqlite", *rows)
        before = file.read_bytes()
        with suppress(UserError):
            wide(read(file, every), ["kl", "top1"])
        assert file.read_bytes() == before


def test_markup_in_a_store_is_shown_as_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = store_of(tmp_path / "r.sqlite", {"model": "[/red]", "value": None, "reason": "[/x]\x1b[2J"})
    assert call(["results", "--store", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "[/red]" in shown
    assert "\x1b" not in shown


def test_a_figure_measured_twice_is_shown_twice_where_every_one_is_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = store_of(
        tmp_path / "r.sqlite", {"value": 1.0}, {"value": 2.0}, {"value": 3.0, "runtime": "vLLM"}, {"value": 4.0, "metric": "top1"}
    )
    table = wide(read(file, every=True), ["kl", "top1"])[0].set_index("runtime")
    assert list(table.loc["vLLM"][["kl", "top1"]]) == ["3", "4"]  # its own before that of no runtime
    assert call(["results", "--store", str(store_of(tmp_path / "s.sqlite", {"value": 1.0}, {"value": 2.0})), "--every"]) == 0
    assert "1, 2" in capsys.readouterr().out


def foreign(folder: Path, kind: str) -> Path:
    """A file that qlab did not write, where its table may be looked for."""
    file = folder / "results.sqlite"
    if kind == "pipe":
        os.mkfifo(file)
        return file
    if kind == "text":
        file.write_text("notes " * 50)
        return file
    with closing(sqlite3.connect(folder / "made.sqlite")) as database:
        if kind == "write-ahead log":
            database.execute("PRAGMA journal_mode=WAL")
        endless = (
            f"WITH RECURSIVE c({', '.join(COLUMNS)}) AS (SELECT {', '.join('1' * len(COLUMNS))} UNION ALL SELECT * FROM c) SELECT * FROM c"
        )
        database.execute(
            {
                "endless view": f"CREATE VIEW measurements AS {endless}",
                "own view": "CREATE VIEW birds AS SELECT 1",
                "other columns": "CREATE TABLE measurements (value)",
            }.get(kind, "CREATE TABLE birds (name)")
        )
        database.commit()
        for part in folder.glob("made.sqlite*"):  # as a program that was killed leaves them, or one that runs still
            shutil.copyfile(part, folder / part.name.replace("made", "results"))
    for part in folder.glob("made.sqlite*"):
        part.unlink()
    if kind == "journal":
        file.with_name("results.sqlite-journal").write_bytes(bytes.fromhex("d9d505f920a163d7") + bytes(1000))
    return file


@pytest.mark.parametrize(
    "kind", ["pipe", "text", "another's table", "write-ahead log", "journal", "endless view", "own view", "other columns"]
)
def test_another_programs_file_is_refused_and_not_changed(kind: str, tmp_path: Path) -> None:
    file = foreign(tmp_path, kind)

    def content() -> dict[str, bytes]:
        return {path.name: path.read_bytes() if path.is_file() else b"" for path in tmp_path.iterdir()}

    before = content()
    for use in (lambda: read(file), lambda: add(file, FACTS, [(Q4, [Figure("kl", 1.0, None, "", {})])])):
        with pytest.raises(UserError, match="expected"):
            use()
        assert content() == before


def test_a_csv_replaces_no_file_unless_it_is_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, mine, link = store_of(tmp_path / "r.sqlite", {}), tmp_path / "thesis.csv", tmp_path / "link.csv"
    mine.write_text("my figures")
    link.symlink_to(mine)
    for target in (mine, link):
        assert call(["results", "--store", str(file), "--csv", str(target)]) == 2
        assert "is there already: give another file, or --force" in " ".join(capsys.readouterr().err.split())
        assert mine.read_text() == "my figures"
    assert call(["results", "--store", str(file), "--csv", str(link), "--force"]) == 0
    assert mine.read_text().startswith("run,date,model")
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.csv", "r.sqlite", "thesis.csv"]


def test_a_csv_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, csv = store_of(tmp_path / "r.sqlite", {}), tmp_path / "a.csv"
    csv.write_text("old")

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert call(["results", "--store", str(file), "--csv", str(csv), "--force"]) == 2
    assert csv.read_bytes() == b"old"


def test_a_csv_goes_into_a_regular_file_of_a_folder_that_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = store_of(tmp_path / "r.sqlite", {})
    os.mkfifo(tmp_path / "pipe")
    for target, said in (
        ("none/a.csv", "make it first"),
        ("pipe", "not a regular file"),
        (".", "not a regular file"),
        ("r.sqlite", "itself"),
    ):
        assert call(["results", "--store", str(file), "--csv", str(tmp_path / target)]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert call(["results", "--store", str(file), "--csv", str(tmp_path / "a.csv")]) == 0
    assert len(read(file)) == 1


@pytest.mark.parametrize("value", [10**30, "half a surrogate \udcff"])
def test_what_sqlite_cannot_hold_is_one_message(value: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be used as a table"):
        add(tmp_path / "r.sqlite", FACTS, [(Q4, [Figure("kl", value, None, "", {})])])


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
