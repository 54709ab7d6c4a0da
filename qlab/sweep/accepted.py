"""The last accepted figures of a sweep with their noise: a file beside the sweep's, against which a run is held."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from qlab.support.disk.whole import write_whole
from qlab.support.errors import UserError
from qlab.support.reading import check_regular
from qlab.sweep.plan import ORIGINAL
from qlab.sweep.results import DONE

ENDING = ".accepted.json"  # in the place of the sweep file's
NOISE = {"kl": "kl_stderr", "loss_increase": "loss_increase_stderr", "perplexity": "stderr"}  # figures, and their standard errors
MOVED = 2.0  # standard errors of the difference from which on a figure has moved
DIGITS = 6


class Figure(BaseModel):
    """A figure and its standard error."""

    model_config = ConfigDict(strict=True, extra="forbid")
    value: float
    error: float


class Accepted(BaseModel):
    """Figures by model, format and name."""

    model_config = ConfigDict(strict=True, extra="forbid")
    figures: dict[str, dict[str, dict[str, Figure]]]


def accepted_file(sweep: Path) -> Path:
    """Where the accepted figures of a sweep's file are."""
    return sweep.with_name(f"{sweep.stem}{ENDING}")


def figures_of(table: pd.DataFrame) -> Accepted:
    """The figures of a sweep's table, of every format that is done."""
    found: dict[str, dict[str, dict[str, Figure]]] = {}
    for row in table.to_dict("records"):
        if row["state"] == DONE:
            names = NOISE if row["format"] != ORIGINAL else ("perplexity",)  # the others are distances from it
            of_row = {name: figure for name in names if (figure := figure_of(row.get(name), row.get(NOISE[name])))}
            found.setdefault(row["model"], {})[row["format"]] = of_row
    return Accepted(figures=found)


def figure_of(value: float | None, error: float | None) -> Figure | None:
    """A figure as it is kept; None where it was not measured."""
    if value is None or error is None or pd.isna(value) or pd.isna(error):
        return None
    return Figure(value=float(f"{value:.{DIGITS}g}"), error=float(f"{error:.{DIGITS}g}"))


def accept(file: Path, table: pd.DataFrame) -> None:
    """Keep the figures of a table as the accepted ones.

    Raises:
        OSError: the file cannot be written.
    """
    write_whole(file, figures_of(table).model_dump_json(indent=1) + "\n")


def read_accepted(file: Path) -> Accepted:
    """The figures that were accepted.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    if not file.exists():
        raise UserError(f"no accepted figures {file}: run the sweep with --accept first, and keep the file with the sweep's")
    check_regular(file)
    try:
        return Accepted.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{file.name} holds no accepted figures ({where[:80]}: {first['msg'][:120]}): write it by --accept") from error


def complaints(table: pd.DataFrame, accepted: Accepted) -> list[str]:
    """What of a sweep's table (qlab.sweep.recommend.fitting) is not as it was accepted, a sentence each: formats beyond the gates, figures
    that moved by more than their noise, formats that were not measured, or not accepted yet."""
    found = [f"{row['model']} {row['format']} does not pass the gates" for row in table.to_dict("records") if fails(row)]
    now, before = figures_of(table).figures, accepted.figures
    names = {(model, name) for figures in (now, before) for model in figures for name in figures[model]}
    for model, name in sorted(names):
        new, old = (figures.get(model, {}).get(name) for figures in (now, before))
        if new is None or old is None:
            found.append(f"{model} {name} was {'accepted, and is not measured' if new is None else 'measured, and never accepted'}")
        else:
            found += [f"{model} {name}: {said}" for figure in NOISE if (said := moved(figure, new.get(figure), old.get(figure)))]
    return found


def fails(row: dict[str, object]) -> bool:
    """Whether a format is beyond the gates. The original is what they are relative to, and what is not measured is told as that."""
    return row["state"] == DONE and row["format"] != ORIGINAL and not row["passes"]


def moved(name: str, new: Figure | None, old: Figure | None) -> str:
    """How a figure moved, in words; empty where it did not by more than its noise."""
    if new is None or old is None:
        return "" if new is old else f"{name} is {'not measured any more' if new is None else 'not accepted yet'}"
    noise = math.hypot(new.error, old.error)
    if abs(new.value - old.value) <= MOVED * noise:
        return ""
    return f"{name} moved from {old.value:.4g} to {new.value:.4g}, by more than {MOVED:g} standard errors of the difference ({noise:.2g})"
