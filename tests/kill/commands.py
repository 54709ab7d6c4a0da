"""The commands that are killed, with the smallest settings that run all of their parts; and what must hold of what they leave."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from qlab.artifacts.manifest import COST
from qlab.cli import call
from qlab.evaluate.store.results import read
from qlab.release.history import history

TINY = ["--windows", "2", "--length", "64"]
GATES = ["--text-windows", "2", "--gate", "kl=10", "--gate", "perplexity=10"]


@dataclass(frozen=True)
class Command:
    """`words` as typed in a folder; `before` makes there what the command shall replace or add to; `state` is all that counts of what lies
    there (it fails on anything half written); `result` of that what an uninterrupted run and one that went on have in common."""

    name: str
    words: list[str]
    before: Callable[[Path], None]
    state: Callable[[Path], Any]
    result: Callable[[Any], Any] = lambda state: state
    writes: bool = True  # a full disk stops it; else it only says that figures were not kept

    def finished(self, folder: Path) -> bool:
        """Whether the same command would refuse to run, since what it makes is there."""
        return self.name == "finetune" and (folder / "adapter").exists()


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file in `folder`, but for what says what making it cost; empty where there is no folder."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != COST]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def quantized(folder: Path) -> None:
    succeed("quantize", "--recipe", "nf4", "--recipe", "q4_k_m", "--windows", "1", "--length", "64", "--out", str(folder / "out"))


def artifacts(folder: Path) -> dict[str, Any]:
    return {name: hashes(folder / "out" / name) for name in ("nf4", "q4_k_m")}


def evaluated(folder: Path) -> None:
    succeed("evaluate", "embedded", "--window", "32", "--tokens", "64", "--results", str(folder / "results.sqlite"))


def rows(folder: Path) -> list[tuple[Any, ...]]:
    """Every row of the store in its order, without what differs from run to run and day to day."""
    table = read(folder / "results.sqlite", every=True)
    return [(row.run, row.artifact, row.runtime, row.metric, row.value) for row in table.itertuples()]


def last_run(found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The figures that the last run added."""
    return [row[1:] for row in found if row[0] == found[-1][0]]


def names_only(found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Of speeds and memory, which are never the same twice, what was measured."""
    return [row[:-1] for row in last_run(found)]


def nothing(folder: Path) -> None:
    """There is nothing before it."""


def released(folder: Path) -> None:
    succeed("release", "--recipe", "q8_0", *TINY, *GATES, "--out", str(folder / "releases"))


def releases(folder: Path) -> dict[str, Any]:
    """The release that is served, whole, and the attempts that came to an end."""
    out = folder / "releases"
    return {"served": hashes((out / "current").resolve()), "tried": [entry["release"] for entry in history(out)]}


def report(folder: Path) -> dict[str, Any]:
    """Records of the lessons that count as done; every page and notebook is whole."""
    out, found = folder / "report", {}
    for page in out.glob("*.html"):
        assert page.read_text(encoding="utf-8").rstrip().endswith("</html>"), page
    for notebook in out.glob("notebooks/*.ipynb"):
        nbformat.validate(nbformat.read(notebook, as_version=4))
    for stamp in out.glob("notebooks/*.json"):
        json.loads(stamp.read_text())
        cells = nbformat.read(stamp.with_suffix(".ipynb"), as_version=4).cells
        assert all(cell.execution_count for cell in cells if cell.cell_type == "code"), stamp
        found[stamp.stem] = "done"
    if (out / "results.json").exists():
        found["results"] = json.loads((out / "results.json").read_text())["results"]
    return found


def succeed(*words: str) -> None:
    assert call(list(words)) == 0


def commands(base: Path) -> list[Command]:
    """All of them; `base` holds what several read: the embedded model in NF4 and Q4_K_M, and an adapter."""
    small = ["-p", "evaluation_windows=2", "-p", "evaluation_length=32", "-p", "calibration_windows=2", "-p", "calibration_length=32"]
    sizes = ["--prompt-tokens", "8", "--generated-tokens", "4", "--repetitions", "2", "--results", "results.sqlite"]
    runtimes = ["--runtime", "transformers", "--runtime", "llamacpp"]
    training = ["--text", "python-reference", "--windows", "8", "--length", "64", "--steps", "16", "--out", "adapter"]
    return [
        Command("quantize", ["quantize", "--recipe", "nf4", "--recipe", "q4_k_m", *TINY, "--out", "out"], quantized, artifacts),
        Command(
            "evaluate", ["evaluate", "embedded", "--window", "64", "--tokens", "4096", "--results", "results.sqlite"], evaluated, rows,
            last_run, writes=False,
        ),
        Command(
            "bench", ["bench", "embedded", str(base / "out/q4_k_m"), *runtimes, *sizes], evaluated, rows, names_only, writes=False,
        ),
        Command("finetune", ["finetune", str(base / "out/nf4"), *training], nothing, lambda folder: hashes(folder / "adapter")),
        Command(
            "release", ["release", "--recipe", "q4_k_m", "--adapter", str(base / "adapter"), *TINY, *GATES, "--out", "releases"], released,
            releases,
        ),
        Command("run", ["run", "01", "--out", "report", *small], nothing, report),
    ]  # fmt: skip
