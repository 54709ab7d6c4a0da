"""What jobs found: a file each, named by the job's key, which any later run and any machine takes as done; and the table of them all."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from qlab.support.disk.whole import write_whole
from qlab.sweep.jobs import Job

DONE, FAILED = "done", "failed"
FIGURES = ("kl", "kl_stderr", "loss_increase", "loss_increase_stderr", "perplexity", "stderr", "top1", "kl_p99", "bytes")


class Result(BaseModel):
    """A job that has come to its end: `figures` where it is DONE, `error` where it is FAILED after so many `tries`; `where` it ran, where
    there are several machines."""

    model_config = ConfigDict(strict=True)
    job: str
    state: str
    seconds: float
    tries: int = 1
    error: str = ""
    where: str = ""
    figures: dict[str, Any] = {}


@dataclass(frozen=True)
class Store:
    """The results of a sweep, in `folder`. One that is DONE is for good, and read once."""

    folder: Path
    known: dict[str, Result] = field(default_factory=dict, compare=False)

    def read(self, key: str) -> Result | None:
        """The result of a job; None where there is none, or a damaged one."""
        if key in self.known:
            return self.known[key]
        try:
            found = Result.model_validate_json((self.folder / f"{key}.json").read_bytes())
        except (OSError, ValidationError):
            return None
        if found.state == DONE:
            self.known[key] = found
        return found

    def done(self, job: Job) -> bool:
        """Whether a job has its result."""
        found = self.read(job.key)
        return found is not None and found.state == DONE

    def write(self, key: str, result: Result) -> None:
        """Keep a result, whole or not at all."""
        write_whole(self.folder / f"{key}.json", result.model_dump_json(indent=1) + "\n")


def figures_of(printed: str) -> dict[str, Any]:
    """The JSON object on the last line that a command printed; empty where there is none."""
    last = (printed.strip().splitlines() or [""])[-1]
    try:
        found = json.loads(last)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def table(jobs: Sequence[Job], store: Store) -> pd.DataFrame:
    """A row for each model and format, in the order of the jobs: figures with standard errors, bytes on disk, or why there are none."""
    by_key = {job.key: job for job in jobs}
    rows = []
    for job in jobs:
        if job.kind != "evaluate":
            continue
        found = store.read(job.key)
        row: dict[str, Any] = {"model": job.model, "format": job.recipe} | standing(found)
        if found and found.state == DONE:
            row |= {name: found.figures.get(name) for name in FIGURES}
            row |= {f"{score['task']} {score['metric']}": score["value"] for score in found.figures.get("tasks", [])}
        elif not found:
            needed = (before for key in job.needs if key in by_key and (before := store.read(key)) and before.state == FAILED)
            row["why"] = next((before.error for before in needed), "")
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else ["model", "format", "state", "why"])


def lessons_table(jobs: Sequence[Job], store: Store, out: Path) -> pd.DataFrame:
    """A row for each model or artifact that a lesson measured, one for a lesson that measured none or is not done; `page`: the lesson's
    page, as a path from the folder `out`, where it is there."""
    rows = []
    for job in jobs:
        if job.kind != "lesson":
            continue
        found = store.read(job.key)
        row: dict[str, Any] = {"lesson": job.recipe, "model": job.model} | standing(found)
        told = found.figures.get("lessons", {}).get(job.recipe, {}) if found else {}
        row |= {"why": found.error or told.get("error", ""), "seconds": found.seconds} if found else {}
        row["page"] = os.path.relpath(job.place, out.absolute()) if Path(job.place).is_file() else ""
        measured = told.get("quality", {})
        names = ("kl", "kl_stderr", "perplexity", "stderr", "top1")
        rows += [row | {"measured": name} | {key: figures.get(key) for key in names} for name, figures in measured.items()] or [row]
    return pd.DataFrame(rows)


def standing(found: Result | None) -> dict[str, Any]:
    """The state of a job, and why it is not done where its result says so."""
    return {"state": found.state if found else "not run", "why": found.error if found else ""}
