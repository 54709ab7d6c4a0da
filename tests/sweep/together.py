"""Lessons in a sweep, one after another and side by side: a part of tests/sweep/acceptance.py."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import yaml

from qlab.workbook.parameters import parameters_of
from qlab.workbook.reader.about import NOTEBOOKS, lesson_names
from tests.notebooks.test_workbook import SMALLER
from tests.sweep.whole import sweep

FIGURES = ["lesson", "model", "state", "measured", "kl", "perplexity", "top1"]


def lessons(work: Path, plan: Path) -> None:
    """All lessons on two models, one after another and side by side: the same figures, in less time."""
    models = yaml.safe_load(plan.read_text())["models"]
    known = {lesson: parameters_of(NOTEBOOKS / f"{lesson}.ipynb") for lesson in lesson_names()}
    smaller = {lesson: {name: value for name, value in SMALLER.items() if name in there} for lesson, there in known.items()}
    took, tables = dict[str, float](), dict[str, pd.DataFrame]()
    for name, memory in {"one after another": "1MB", "side by side": ""}.items():  # a job that needs more memory than there is runs alone
        out, file = work / name.replace(" ", "-"), work / f"{name.replace(' ', '-')}.yaml"
        own = {lesson: values | {"work": str(out / "work")} for lesson, values in smaller.items()}
        file.write_text(json.dumps({"models": models, "lessons": own, "limits": {"memory": memory or None}}))
        took[name], _ = sweep(file, out)
        tables[name] = pd.read_csv(out / "lessons.csv")
        print(f"{len(own)} lessons on {len(models)} models {name}: {took[name]:.0f} s, {len(tables[name])} rows", flush=True)
    first, second = (table[FIGURES] for table in tables.values())
    assert set(first["state"]) == {"done"}
    assert first.equals(second), first.compare(second)
    assert took["side by side"] < took["one after another"]
