"""The table of everything measured, over models, machines and days: one row a figure, with what it was measured under (SQLite)."""

from __future__ import annotations

import json
import os
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from qlab.evaluate.local_tasks import CLOZE
from qlab.evaluate.quality import Quality
from qlab.evaluate.runtime import RuntimeFigures
from qlab.evaluate.tasks import Score
from qlab.support.disk.room import full, no_room
from qlab.support.errors import UserError
from qlab.support.reading import too_deep

STORE = Path("build/results.sqlite")
COLUMNS = (
    "run",
    "date",
    "model",
    "artifact",
    "fingerprint",
    "runtime",
    "metric",
    "value",
    "error",
    "unit",
    "reason",
    "conditions",
    "provenance",
)
MAGIC, WRITE_AHEAD = b"SQLite format 3\0", b"\2\2"  # how a database begins; its versions for writing and reading where it has such a log
KEY = ["model", "artifact", "fingerprint", "runtime", "metric", "conditions"]  # of the same ones a newer figure takes the place


@dataclass(frozen=True)
class Figure:
    """One measured number: `metric` in `unit`, its standard error or spread, and the `conditions` (sizes, text, device, dtype, kernel).

    Where there is none, `reason` says why and `value` is None.
    """

    metric: str
    value: float | None
    error: float | None
    unit: str
    conditions: Mapping[str, Any]
    reason: str = ""


@dataclass(frozen=True)
class Subject:
    """What was measured: the original `model`, the `artifact` (a recipe's name, or "original"), a hash of its files, and the runtime."""

    model: str
    artifact: str
    fingerprint: str
    runtime: str = ""


def quality_figures(quality: Quality, under: Mapping[str, str], reference: str = "") -> list[Figure]:
    """Perplexity and the distances from the model `reference`, measured `under`: text (qlab.models.texts.windows.Reading.conditions),
    dtype and device."""
    measured = {**under, "tokens": quality.tokens, "window": quality.window}
    found = [Figure("perplexity", quality.perplexity, quality.stderr, "", measured)]
    if quality.kl is not None:
        measured = measured | {"reference": reference}
        found += [
            Figure("kl", quality.kl, quality.kl_stderr, "nats/token", measured),
            Figure("kl p99", quality.kl_p99, None, "nats/token", measured),
            Figure("top1", quality.top1, None, "share", measured),
            Figure("loss increase", quality.loss_increase, quality.loss_increase_stderr, "nats/token", measured),
        ]
    return found


def score_figures(scores: Sequence[Score], under: Mapping[str, str], text: Mapping[str, str]) -> list[Figure]:
    """lm-eval's scores, measured `under` dtype and device; `text` is what the task CLOZE is made of."""
    made_of = {CLOZE: text}
    return [
        Figure(f"{s.task} {s.metric}", s.value, s.stderr, "", {**under, **made_of.get(s.task, {}), "documents": s.documents})
        for s in scores
    ]


def runtime_figures(figures: RuntimeFigures | None, problem: str = "") -> list[Figure]:
    """Speeds, ceiling and memory in one runtime; or why there are none."""
    if figures is None:
        return [Figure("generation", None, None, "tok/s", {}, problem)]
    speed, memory = figures.speed, figures.memory
    under = {"batch": 1, **speed.conditions, "pp": speed.prompt_tokens, "tg": speed.generated_tokens}
    found = [
        Figure("prompt", speed.prompt, speed.prompt_sd, "tok/s", under),
        Figure("generation", speed.generation, speed.generation_sd, "tok/s", under),
        Figure("generation ceiling", figures.ceiling, None, "tok/s", under),
        Figure("bandwidth", figures.bandwidth, None, "B/s", under),
    ]
    for phase, own in (("prompt", speed.prompt_reported), ("generation", speed.generation_reported)):
        if own is not None:
            found.append(Figure(f"{phase} by the runtime's clock", own, None, "tok/s", under))
    expected = memory.expected
    sizes = {name: getattr(memory, name) for name in ("loaded", "prompting", "generating", "predicted")}
    sizes |= {} if expected.peak is None else {"predicted at the peak": expected.peak}
    sizes |= {"weights": expected.weights, "cache": expected.cached, "cache per token": expected.cache, "overhead": expected.overhead}
    return found + [Figure(f"memory {name}", float(size), None, "B", under) for name, size in sizes.items()]


def add(store: Path, provenance: Mapping[str, Any], measured: Sequence[tuple[Subject, Sequence[Figure]]]) -> None:
    """Append figures to the table in the file `store`, all of one run or none.

    Raises:
        UserError: the file is no such table, or cannot be written.
    """
    run, date, facts = uuid.uuid4().hex[:12], provenance["date"], json.dumps(provenance, sort_keys=True)
    rows = [
        (
            run, date, subject.model, subject.artifact, subject.fingerprint, subject.runtime, figure.metric, figure.value, figure.error,
            figure.unit, figure.reason, json.dumps(figure.conditions, sort_keys=True), facts,
        )
        for subject, figures in measured
        for figure in figures
    ]  # fmt: skip
    with opened(store, create=True) as database, database:
        database.executemany(f"INSERT INTO measurements ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})", rows)


def read(store: Path, every: bool = False) -> pd.DataFrame:
    """The table, one row a figure, oldest first. Of one that was measured again under the same conditions, and on the same machine where
    it is of a runtime, only the newest, unless `every` is wanted.

    Raises:
        UserError: no such file, it is no such table, or a row has a value of another type.
    """
    with opened(store) as database:
        rows = database.execute(f"SELECT {', '.join(COLUMNS)} FROM measurements ORDER BY rowid").fetchall()
    for number, row in enumerate(rows, 1):
        check_row(store, number, dict(zip(COLUMNS, row)))
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"value": float, "error": float})
    machines = [machine_of(facts) if runtime else "" for runtime, facts in zip(table["runtime"], table["provenance"])]
    return table if every else table[~table.assign(machine=machines).duplicated([*KEY, "machine"], keep="last")].reset_index(drop=True)


def machine_of(provenance: str) -> str:
    """What speeds depend on of the machine in a row's provenance, in words; empty where it does not say."""
    facts = json.loads(provenance).get("machine")
    if not isinstance(facts, dict):
        return ""
    cores = f"{facts['cores']} cores" if "cores" in facts else None
    return " ".join(str(fact) for fact in (facts.get("system"), facts.get("processor"), cores, facts.get("device")) if fact)


def check_row(store: Path, number: int, row: Mapping[str, Any]) -> None:
    """Raise the UserError of a row that qlab did not write: numbers or none in `value` and `error`, text everywhere else, and in
    `conditions` and `provenance` that of a JSON object."""
    for column, value in row.items():
        expected = (int, float, type(None)) if column in ("value", "error") else (str,)
        kind = "a number or nothing" if column in ("value", "error") else "text"
        right = isinstance(value, expected)
        if right and column in ("conditions", "provenance"):
            kind, right = "a JSON object", is_object(value)
        if not right:
            raise UserError(
                f"{store}, row {number}: {column} is {str(value)[:60]!r}, expected {kind}; give a file that qlab wrote (--store)"
            )


def is_object(text: str) -> bool:
    """Whether it is JSON of an object, not nested too deeply to be handled."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and not too_deep(found)


@contextmanager
def opened(store: Path, create: bool = False) -> Iterator[sqlite3.Connection]:
    """The database of `store`, closed afterwards. What is in another program's file is seen before anything could change it."""
    try:
        if os.path.lexists(store):
            check_store(store)
        if create:
            store.parent.mkdir(parents=True, exist_ok=True)
        elif not store.exists() or not store.stat().st_size:
            raise UserError(f"no results at {store}: 'qlab bench', 'qlab evaluate' and lesson 7 write them")
        # Reading changes nothing; but what a process that was killed has added in part is taken back first.
        killed = store.with_name(f"{store.name}-journal").exists()
        with connected(store, "rwc" if create else "rw" if killed else "ro") as database:
            if create:
                database.execute(f"CREATE TABLE IF NOT EXISTS measurements ({', '.join(COLUMNS)})")
            yield database
    except (sqlite3.Error, OSError, UnicodeError, OverflowError) as error:  # the last two: text or a number that SQLite cannot hold
        if number := full(error):
            raise UserError(no_room(number, store.parent)) from error
        raise UserError(f"{store} cannot be used as a table of results ({error}): expected a file that qlab wrote, or none yet") from error


def connected(store: Path, mode: str) -> closing[sqlite3.Connection]:
    """A connection by one of SQLite's modes, ro, rw or rwc."""
    return closing(sqlite3.connect(f"{store.absolute().as_uri()}?mode={mode}", uri=True, timeout=30))


def check_store(store: Path) -> None:
    """See that a file is a table of results or an empty database, and change nothing.

    A database with a write-ahead log is another program's; merely opening it would write beside it.

    Raises:
        UserError: it is neither.
        sqlite3.Error, OSError: it cannot be read.
    """
    if not store.is_file():
        raise UserError(f"{store} is not a regular file: expected a file that qlab wrote, or none yet")
    with store.open("rb") as file:
        head = file.read(len(MAGIC) + 4)
    with connected(store, "ro&immutable=1") as database:
        if (head and not head.startswith(MAGIC)) or head[-2:] == WRITE_AHEAD or not (is_table(database) or is_empty(database)):
            raise UserError(
                f"{store} cannot be used as a table of results: it is another program's; expected one that qlab wrote, or none yet"
            )


def is_empty(database: sqlite3.Connection) -> bool:
    """Whether it holds no table, view or index."""
    return database.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def is_table(database: sqlite3.Connection) -> bool:
    """Whether it holds the table of measurements: a table, since a view may compute for ever."""
    kinds = database.execute("SELECT type FROM sqlite_master WHERE name = 'measurements'").fetchall()
    return kinds == [("table",)] and [name for _, name, *_ in database.execute("PRAGMA table_info(measurements)")] == list(COLUMNS)
