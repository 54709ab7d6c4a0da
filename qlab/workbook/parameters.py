"""A lesson's parameters: read from its tagged cell, checked by name and type before anything runs, some less for a large model.

papermill itself only warns of a misspelled name and passes any value on.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from qlab import ROOT
from qlab.artifacts.placing import check_apart
from qlab.evaluate.engines import RUNNERS
from qlab.evaluate.tasks import check_tasks
from qlab.models.opening import OpenedModel, found_device
from qlab.models.texts.mixture import check_texts, load_text
from qlab.plan.pace import NONE, gpus
from qlab.support.errors import UserError
from qlab.workbook.language.spoken import say

LARGEST = 10**7  # of a whole number; tokens, windows, seconds
LARGE = 100e6  # weights
USUAL = {  # a parameter's name: what it is for a model of at most LARGE weights, and for a larger one
    "evaluation_windows": (16, 5),
    "tuning_steps": (40, 20),
    "training_steps": (8, 4),
    "load_requests": (48, 24),
    "load_users": (64, 16),
    "generated_tokens": (16, 8),  # of lesson 7
    "task_documents": (32, 16),
    "agreement_prompts": (32, 16),
}


@dataclass(frozen=True)
class Parameter:
    """One line of the parameters cell: `name = default  # help`."""

    name: str
    default: Any
    help: str

    def parse(self, text: str) -> Any:
        """`text` from a command line as a value of the default's type.

        Raises:
            UserError: it is none.
        """
        kind = type(self.default)
        if kind is str:
            return text
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that it documents
            value = None
        if kind is float and type(value) is int and abs(value) < LARGEST:
            value = float(value)
        least = min(1, self.default) if kind is int else 1  # where the default is 0, that means a choice by the model's size
        if kind is int and type(value) is int and not least <= value <= LARGEST:
            raise UserError(
                f"parameter {self.name} is {text[:60]}: expected a whole number from {least} to {LARGEST:,}, such as {self.default}"
            )
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            raise UserError(f"parameter {self.name} is {text[:60]!r}: expected {_NAMES.get(kind, kind.__name__)}, such as {self.default!r}")
        return value


_NAMES = {int: "a whole number", float: "a number", bool: "True or False", list: "a list"}


def parameters_of(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a lesson, in their cell's order."""
    cells = nbformat.read(notebook, as_version=4).cells
    source = next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    found = {}
    for node, line in zip(
        ast.parse(source).body, [text for text in source.splitlines() if text.strip() and not text.startswith("#")], strict=True
    ):
        assert isinstance(node, ast.Assign)
        assert isinstance(node.targets[0], ast.Name)
        name = node.targets[0].id
        found[name] = Parameter(name, ast.literal_eval(node.value), line.partition("  # ")[2].strip())
    return found


def resolve(known: Mapping[str, Mapping[str, Parameter]], given: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Values for each lesson of `known`: its defaults, overridden by the `given` texts; a name need be known to one lesson only.

    Raises:
        UserError: a name that no lesson has, or a value of the wrong type.
    """
    names = sorted({name for parameters in known.values() for name in parameters})
    for name in given:
        if name not in names:
            raise UserError(f"no lesson to run has a parameter {name!r}: expected one of {', '.join(names)}")
    return {
        lesson: {name: parameter.parse(given[name]) if name in given else parameter.default for name, parameter in parameters.items()}
        for lesson, parameters in known.items()
    }


def check_values(chosen: Mapping[str, Any], source: OpenedModel) -> None:
    """See that a lesson on the model `source` can use its parameters, before any lesson runs.

    Raises:
        UserError: it cannot.
    """
    if "device" in chosen:
        found_device(chosen["device"])
    for text in {chosen[name] for name in ("calibration_text", "evaluation_text") if name in chosen}:
        check_texts(text)
    if "work" in chosen:
        check_apart(ROOT / chosen["work"] / source.path.name, source.path)  # the artifacts lie below it
    if unknown := [name for name in names_in(chosen.get("runtimes", "")) if name not in RUNNERS]:
        raise UserError(f"no runtime {unknown[0][:60]!r}: expected {', '.join(RUNNERS)}")
    if chosen.get("gpu", NONE) not in gpus():
        raise UserError(f"no generation {chosen['gpu'][:60]!r}: expected {', '.join(gpus())}")
    if tasks := names_in(chosen.get("tasks", "")):
        folder = Path(chosen["task_data"]) if chosen["task_data"] else None
        check_tasks(tasks, chosen["task_documents"], folder, load_text(chosen["evaluation_text"]))


def usual(name: str, source: OpenedModel) -> int:
    """What the parameter `name` is for a model where nobody gave it."""
    return USUAL[name][source.layout.weights > LARGE]


def by_size(name: str, given: int, source: OpenedModel) -> int:
    """The parameter `name` as it was `given`, or the model's usual one where it is 0; where that is less than others get, a printed
    sentence says so."""
    if given:
        return given
    most, found = USUAL[name][0], usual(name, source)
    if found < most:
        values = {"name": name, "fewer": found, "millions": round(source.layout.weights / 1e6), "usual": most}
        text = "{name} is {fewer}, as the model has {millions} million weights: all takes longer on it. Smaller models get {usual}."
        print(say(text, **values))
    return found


def names_in(text: str) -> list[str]:
    """Names with commas between."""
    return [name for name in text.split(",") if name]
