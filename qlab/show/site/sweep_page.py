"""The page of a sweep: while it runs, where it stands; afterwards what to take, quality against size, and every row."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup

from qlab.show import figures
from qlab.show.site.pages import page
from qlab.show.site.sweep_place import PAGE, TITLE
from qlab.support.disk.whole import write_whole
from qlab.support.wording import counted
from qlab.sweep.drive import Progress
from qlab.sweep.plan import ORIGINAL
from qlab.sweep.results import DONE

TABLES = ("table", "lessons", "speeds", "loads")  # names of files without their endings: formats, lessons, runtimes, servers under load
EVERY = 5.0  # seconds from one page of a running sweep to the next; a browser that has it open reloads it as often
SHARE = 0.1  # of the time, at most, is spent on writing pages


@dataclass
class LivePage:
    """The page of a running sweep: `write` is called where something has changed, but only every few seconds."""

    write: Callable[[Progress], object]
    due: float = 0.0
    shown: Progress | None = None

    def update(self, progress: Progress) -> None:
        """Take note of where the sweep stands.

        Raises:
            OSError: the page cannot be written.
        """
        started = time.monotonic()
        if progress is self.shown or started < self.due:
            return
        self.write(progress)
        ended = time.monotonic()
        self.due, self.shown = ended + max(EVERY, (ended - started) / SHARE), progress


def write_page(out: Path, tables: Mapping[str, pd.DataFrame], sentences: list[str], state: str, running: bool) -> Path:
    """Write the page of a sweep into the folder `out`: of its TABLES, of which the first is that of qlab.sweep.recommend.fitting, and of
    what to take, in `sentences`. That of a running sweep reloads itself.

    Raises:
        OSError: it cannot be written.
    """
    table, lessons, speeds, loads = (tables[name] for name in TABLES)
    names = list(dict.fromkeys([*table["model"], *lessons.get("model", [])]))
    drawn = (
        [] if running else [each for name in names for each in (front(table, name), speed_front(table, speeds, name)) if each is not None]
    )
    parts = [counted(len(names), "model")]
    parts += [counted(len(set(table["format"]) - {ORIGINAL}), "format")] if len(table) else []
    parts += [counted(lessons["lesson"].nunique(), "lesson")] if len(lessons) else []
    content: dict[str, Any] = {
        "subject": " × ".join(parts), "state": state, "sentences": sentences, "figures": [Markup(drawing.html()) for drawing in drawn],
        "running": running, "every": int(EVERY), "columns": COLUMNS, "rows": [cells(row) for row in table.to_dict("records")],
        "lesson_columns": LESSON_COLUMNS, "lessons": [lesson_cells(row) for row in lessons.to_dict("records")],
        "speed_columns": SPEED_COLUMNS, "speeds": [speed_cells(row) for row in speeds.to_dict("records")],
        "load_columns": LOAD_COLUMNS, "loads": [load_cells(row) for row in loads.to_dict("records")],
    }  # fmt: skip
    file = out / PAGE
    write_whole(file, page("sweep.html.jinja", TITLE, [], **content))
    return file


COLUMNS = (
    "model",
    "format",
    "KL to the original",
    "perplexity",
    "same top token",
    "KL p99",
    "MB on disk",
    "MB with cache",
    "fits",
    "gates",
)


LESSON_COLUMNS = ("lesson", "model", "measured", "KL to the original", "perplexity", "same top token", "minutes")
SPEED_COLUMNS = ("model", "format", "runtime", "prompt tok/s", "generation tok/s", "ceiling tok/s", "MB in memory", "threads", "machine")
LOAD_COLUMNS = (
    "model",
    "format",
    "runtime",
    "at a time",
    "TTFT p50 / p99 (ms)",
    "TPOT p50 / p99 (ms)",
    "requests/s",
    "output tok/s",
    "MB of the server",
    "machine",
)


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table, as text."""
    if row["state"] != DONE:
        return [row["model"], row["format"], row["why"] or row["state"], *[""] * (len(COLUMNS) - 3)]
    return [
        row["model"], row["format"], with_error(row, "kl", "kl_stderr", ".4f"), with_error(row, "perplexity", "stderr", ".3f"),
        number(row, "top1", ".1%"), number(row, "kl_p99", ".3f"), number(row, "bytes", ",.1f", 1e-6), number(row, "needed", ",.1f", 1e-6),
        "yes" if row["fits"] else "no", "pass" if row["passes"] else "fail",
    ]  # fmt: skip


def lesson_cells(row: dict[str, Any]) -> tuple[str, list[str]]:
    """The link to a lesson's page, empty where there is none, and its row of the table as text."""
    measured = row.get("measured")
    named = measured if isinstance(measured, str) else row["why"] or ("" if row["state"] == DONE else row["state"])
    return quote(row["page"]), [
        row["lesson"], row["model"], named, with_error(row, "kl", "kl_stderr", ".4f"), with_error(row, "perplexity", "stderr", ".3f"),
        number(row, "top1", ".1%"), number(row, "seconds", ".1f", 1 / 60),
    ]  # fmt: skip


def speed_cells(row: dict[str, Any]) -> list[str]:
    """A row of the table of speeds, as text."""
    return [
        row["model"], row["format"], named(row), with_error(row, "prompt", "prompt_sd", ".0f"),
        with_error(row, "generation", "generation_sd", ".1f"), number(row, "ceiling", ".0f"), number(row, "memory", ",.0f", 1e-6),
        text(row, "threads"), text(row, "machine"),
    ]  # fmt: skip


def load_cells(row: dict[str, Any]) -> list[str]:
    """A row of the table of servers under load, as text."""
    times = [
        f"{number(row, f'{name}_p50', '.1f', 1e3)} / {number(row, f'{name}_p99', '.1f', 1e3)}".strip(" /") for name in ("ttft", "tpot")
    ]
    return [
        row["model"], row["format"], named(row), number(row, "at_a_time", ".0f"), *times, number(row, "request_throughput", ".1f"),
        number(row, "output_throughput", ".0f"), number(row, "memory", ",.0f", 1e-6), text(row, "machine"),
    ]  # fmt: skip


def named(row: dict[str, Any]) -> str:
    """The runtime of a row, with why it has no figures, if it has none."""
    return ": ".join(part for part in (text(row, "runtime"), row["why"] or ("" if row["state"] == DONE else row["state"])) if part)


def text(row: dict[str, Any], name: str) -> str:
    """A word of a row; empty where there is none."""
    return found if isinstance(found := row.get(name), str) else ""


def number(row: dict[str, Any], name: str, form: str, factor: float = 1.0) -> str:
    """A number of a row as text; empty where there is none."""
    value = row.get(name)
    return "" if value is None or pd.isna(value) else format(value * factor, form)


def with_error(row: dict[str, Any], name: str, error: str, form: str) -> str:
    """A number of a row with its standard error; empty where there is none."""
    value = number(row, name, form)
    return value and f"{value} ± {number(row, error, form)}"


def front(table: pd.DataFrame, model: str) -> Any:
    """Distance against size for the formats of a model, with the Pareto front; none where there are fewer than two."""
    rows = table[(table["model"] == model) & (table["state"] == DONE) & (table["format"] != ORIGINAL)]
    points = {row["format"]: (row["needed"] / 1e6, row["kl"]) for row in rows.to_dict("records") if row["kl"] and row["kl"] > 0}
    if len(points) < 2:
        return None
    nearest = min(points, key=lambda name: points[name][1])
    title = f"{model}: {nearest} is nearest to the original, at {points[nearest][0]:,.1f} MB"
    return figures.scatter(points, title, "MB of weights and KV cache", "KL divergence (nats/token)", log_y=True)


def speed_front(table: pd.DataFrame, speeds: pd.DataFrame, model: str) -> Any:
    """Distance against time for the formats of a model, in each runtime, with the Pareto front; none where there are fewer than two."""
    kl = {row["format"]: row.get("kl") for row in table.to_dict("records") if row["model"] == model and row["format"] != ORIGINAL}
    points = {
        f"{row['format']}, {row['runtime']}": (1e3 / row["generation"], kl[row["format"]])
        for row in speeds.to_dict("records")
        if row["model"] == model and (kl.get(row["format"]) or 0) > 0 and (row.get("generation") or 0) > 0
    }
    if len(points) < 2:
        return None
    fastest = min(points, key=lambda name: points[name][0])
    title = f"{model}: {fastest} is the fastest, at {points[fastest][0]:.2f} ms a token"
    return figures.scatter(points, title, "milliseconds a generated token", "KL divergence (nats/token)", log_y=True)
