"""The sweep file: YAML with models, recipes, lessons, texts, constraints and gates, checked before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qlab.support.errors import UserError
from qlab.support.reading import check_regular

LARGEST = 1 << 20  # bytes of a sweep file
ORIGINAL = "original"  # in the place of a recipe: the model as it came
MOST = 1000  # models, recipes or texts of one
Name = Annotated[str, Field(min_length=1, max_length=1000)]
Names = Annotated[list[Name], Field(min_length=1, max_length=MOST)]


class Part(BaseModel):
    """A mapping of the file: names that it does not know are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Calibration(Part):
    """What `qlab quantize` reads."""

    text: Names = ["docstrings"]
    windows: Annotated[int, Field(ge=1, le=10**6)] = 128
    length: Annotated[int, Field(ge=2, le=10**7)] = 512


class Evaluation(Part):
    """What `qlab evaluate` reads, and the tasks of lm-eval that it scores."""

    text: Names = ["python-reference"]
    window: Annotated[int, Field(ge=2, le=10**7)] = 512
    tokens: Annotated[int, Field(ge=4, le=10**9)] = 20480
    tasks: list[Annotated[str, Field(min_length=1, max_length=100)]] = []


class Bench(Part):
    """What `qlab bench` times: the formats of `recipes`, or "original", in `runtimes`; where none are named, all, in all that run them."""

    recipes: Annotated[list[Name], Field(max_length=MOST)] = []
    runtimes: Annotated[list[Name], Field(max_length=100)] = []
    prompt_tokens: Annotated[int, Field(ge=1, le=10**7)] = 512
    generated_tokens: Annotated[int, Field(ge=1, le=10**7)] = 128
    repetitions: Annotated[int, Field(ge=2, le=1000)] = 5


class Load(Part):
    """What `qlab serve --load` serves, proves and puts under load: the formats of `recipes`, or "original", in `runtime`; where none is
    named, all that a runtime serves, in the first that does. `prompts`: a file of them, else the workbook's 500."""

    recipes: Annotated[list[Name], Field(max_length=MOST)] = []
    runtime: Name | None = None
    concurrency: Annotated[list[Annotated[int, Field(ge=1, le=10_000)]], Field(min_length=1, max_length=20)] = [1, 4, 16]
    tokens: Annotated[int, Field(ge=1, le=100_000)] = 16
    prompts: Name | None = None


class Constraints(Part):
    """What the recommendation has to fit: weights and KV cache of `sequences` of `context` tokens in `memory`, such as "24GB"."""

    memory: str | None = None
    context: Annotated[int, Field(ge=1, le=10**8)] = 4096
    sequences: Annotated[int, Field(ge=1, le=10**6)] = 1


class Limits(Part):
    """Of the machine: `memory` that all jobs may take together (else what is free), `threads` of a job, `tries` of one that fails, and the
    hours after which it counts as failed."""

    memory: str | None = None
    threads: Annotated[int, Field(ge=1, le=4096)] = 1
    tries: Annotated[int, Field(ge=1, le=100)] = 2
    hours: Annotated[float, Field(gt=0, le=10_000)] = 24.0


class Sweep(Part):
    """The file. `gates`: the largest KL, or the largest factor of perplexity, that a format may have to be recommended. `lessons`: names of
    lessons, each with the parameters that are not to be its defaults. Speed is measured only where there is `bench`, and servers only where
    there is `load`."""

    models: Names
    recipes: Annotated[list[Name], Field(max_length=MOST)] = []
    lessons: Annotated[dict[str, dict[str, str | int | float | bool]], Field(max_length=MOST)] = {}
    calibration: Calibration = Calibration()
    evaluation: Evaluation = Evaluation()
    bench: Bench | None = None
    load: Load | None = None
    constraints: Constraints = Constraints()
    gates: dict[str, Annotated[float, Field(gt=0)]] = {}
    limits: Limits = Limits()
    device: str = "cpu"


GATES = ("kl", "perplexity")
DEVICES = ("cpu", "cuda")  # each job has one GPU, whichever is free


def read_sweep(file: Path) -> Sweep:
    """The sweep in a file.

    Raises:
        UserError: it cannot be read, is no YAML, or a key or value is wrong; then with its line.
    """
    check_regular(file, LARGEST)
    try:
        text = file.read_text(encoding="utf-8")
        tree = yaml.compose(text, yaml.SafeLoader)
        found = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{file.name} is not UTF-8 text: expected a YAML file with models and recipes") from error
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, TypeError) as error:
        said = " ".join(str(getattr(error, "problem", None) or error).split())[:120]
        mark = getattr(error, "problem_mark", None)
        raise UserError(f"{file.name}{f', line {mark.line + 1}' if mark else ''}: {said}; expected YAML with models and recipes") from error
    if not isinstance(found, dict):
        raise UserError(f"{file.name} holds no mapping: expected YAML with models and recipes")
    try:
        sweep = Sweep.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = [step for step in first["loc"] if isinstance(step, (str, int))]
        said = f"{file.name}, line {line_of(tree, where)}: {'.'.join(map(str, where))[:80]}"
        if first["type"] == "extra_forbidden":
            raise UserError(f"{said} is no key of a sweep: expected one of {', '.join(keys_at(where[:-1]))}") from error
        raise UserError(f"{said}: {first['msg'][:120]}") from error
    if wrong := first_wrong(sweep):
        raise UserError(f"{file.name}, line {line_of(tree, wrong[0])}: {wrong[1]}")
    return sweep


def keys_at(place: Sequence[str | int]) -> list[str]:
    """The keys that a sweep file may have at this place: of all of it, or of one of its parts."""
    part: type[Part] = Sweep
    for step in place:
        kind = part.model_fields[str(step)].annotation
        part = next(each for each in (kind, *get_args(kind)) if isinstance(each, type) and issubclass(each, Part))
    return list(part.model_fields)


def first_wrong(sweep: Sweep) -> tuple[list[str], str] | None:
    """The first thing that the form of the file allows and that makes no sense, as its place and what to say of it."""
    if not sweep.recipes and not sweep.lessons:
        return [], "nothing to do: expected recipes, lessons or both"
    for part, timed in (("bench", sweep.bench), ("load", sweep.load)):
        if timed and not sweep.recipes:
            return [part], f"{part} is of the formats of recipes, and there are none"
        if timed and (strange := [name for name in timed.recipes if name not in (*sweep.recipes, ORIGINAL)]):
            return [part, "recipes"], f"{part} is of {strange[0][:40]!r}: expected one of the recipes of this file, or {ORIGINAL}"
    if unknown := sorted(set(sweep.gates) - set(GATES)):
        return ["gates", unknown[0]], f"no gate {unknown[0][:40]!r}: expected {', '.join(GATES)}"
    if sweep.device not in DEVICES:
        return ["device"], f"no device {sweep.device[:40]!r}: expected {' or '.join(DEVICES)}"
    return wrong_lesson(sweep.lessons) if sweep.lessons else None


def wrong_lesson(lessons: Mapping[str, Mapping[str, str | int | float | bool]]) -> tuple[list[str], str] | None:
    """The first lesson or parameter that is not there, or value that a parameter cannot have."""
    from qlab.workbook.parameters import parameters_of, resolve  # here: what reads notebooks takes seconds to import
    from qlab.workbook.reader.about import NOTEBOOKS, lesson_names

    for lesson, given in lessons.items():
        if lesson not in lesson_names():
            return ["lessons", lesson], f"no lesson {lesson[:40]!r}: expected one of {', '.join(lesson_names())}"
        if "model" in given:
            return ["lessons", lesson, "model"], "a lesson runs on each of the models above: leave out its model"
        known = {lesson: parameters_of(NOTEBOOKS / f"{lesson}.ipynb")}
        for name, value in given.items():
            try:
                resolve(known, {name: as_typed(value)})
            except UserError as error:
                return ["lessons", lesson, name], str(error)
    return None


def as_typed(value: str | int | float | bool) -> str:
    """A lesson's parameter as one types it on a command line."""
    return value if isinstance(value, str) else repr(value)


def line_of(tree: yaml.Node | None, path: list[Any]) -> int:
    """The line of what lies at `path` in the file, from 1 on, or of the nearest that is there."""
    line = 1
    for step in path:
        if isinstance(tree, yaml.MappingNode):
            entry = next(((key, value) for key, value in tree.value if key.value == step), None)
            if entry is None:
                return line
            line, tree = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(tree, yaml.SequenceNode) and isinstance(step, int) and step < len(tree.value):
            tree = tree.value[step]
            line = tree.start_mark.line + 1
    return line
