"""Whole sweeps as a user runs them, and what they have left in their folders."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

from qlab import ROOT
from qlab.artifacts.manifest import COST

PATIENCE = 3600  # seconds for a sweep; fourteen lessons one after another are the longest


def sweep(plan: Path, out: Path, *words: str) -> tuple[float, str]:
    """Run a sweep: the seconds that it took, and what it said."""
    started = time.monotonic()
    done = subprocess.run(command(plan, out, *words), capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return time.monotonic() - started, done.stdout + done.stderr


def command(plan: Path, out: Path, *words: str) -> list[str]:
    """The words that run a sweep."""
    return [sys.executable, "-m", "qlab", "sweep", str(plan), "--out", str(out), *words]


def hashes(out: Path) -> dict[str, str]:
    """Of every file below the artifacts of a sweep but what they cost and the locks, by its path."""
    found = [file for file in sorted((out / "artifacts").rglob("*")) if file.is_file() and file.name != COST and file.suffix != ".lock"]
    return {str(file.relative_to(out)): hashlib.file_digest(file.open("rb"), "sha256").hexdigest() for file in found}


def check_same(out: Path, expected: Path) -> None:
    """See that two sweeps made the same bytes, nothing else, and the same table."""
    made, wanted = hashes(out), hashes(expected)
    assert made == wanted, sorted(name for name in made.keys() | wanted.keys() if made.get(name) != wanted.get(name))[:10]
    assert pd.read_csv(out / "table.csv").equals(pd.read_csv(expected / "table.csv"))


def results(out: Path) -> dict[str, dict[str, Any]]:
    """The results of a sweep by their keys, each with the time at which it was written."""
    return {file.stem: json.loads(file.read_bytes()) | {"written": file.stat().st_mtime_ns} for file in (out / "jobs").glob("*.json")}
