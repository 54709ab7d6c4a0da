"""Files changed at random: bytes of headers, values of JSON. Whatever comes of them, it is figures or one short message, soon.

QLAB_FUZZ says how many times as many examples are tried (`make fuzz`).
"""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.models import Models
from tests.fuzz.trial import TIMES, attempt

HEADER = 8192  # bytes at the beginning of a file that mutations fall into
SETTINGS = settings(
    deadline=None, database=None, derandomize=TIMES == 1, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

NUMBERS = st.one_of(st.sampled_from([0, -1, 1, 2, 3, 7, 2**31, 2**63, 2**70, 10**400]), st.integers(-100, 5000), st.floats())
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=12) | st.sampled_from(["float16", "llama", "default", "BPE", "../x", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
Mutation = Callable[[bytes], bytes]


@st.composite
def mutations(draw: st.DrawFn) -> Mutation:
    """Some bytes near the beginning are changed, taken out or put in, or the end is cut off."""
    steps = draw(
        st.lists(
            st.tuples(st.sampled_from(["changed", "cut", "in", "out"]), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
            min_size=1,
            max_size=3,
        )
    )

    def mutate(whole: bytes) -> bytes:
        for how, share, data in steps:
            place = int(share * min(HEADER, len(whole)))
            if how == "cut":
                whole = whole[: int(share * len(whole))]
            else:
                rest = {"changed": place + len(data), "in": place, "out": place + len(data)}[how]
                whole = whole[:place] + (b"" if how == "out" else data) + whole[rest:]
        return whole

    return mutate


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in JSON, of long lists and objects the first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if path else []
    for key, one in list(inner)[:40]:
        found += paths(one, (*path, key))
    return found


def with_value(known: Any, path: tuple[Any, ...], value: Any) -> None:
    """Put a value at a place; nothing where an earlier one took the place away."""
    try:
        for step in path[:-1]:
            known = known[step]
        known[path[-1]] = value
    except (KeyError, IndexError, TypeError):
        return


def check(models: Models, model: str, command: str, change: Callable[[Path], Any]) -> None:
    """Try a command on a changed copy of a model."""
    with tempfile.TemporaryDirectory(prefix="qlab-fuzz-") as box:
        folder, work = models.copy(model, Path(box) / "model"), Path(box) / "work"
        work.mkdir()
        change(folder)
        answer = attempt(command, folder, work)
        if fault := answer.fault():
            kept = Path(tempfile.mkdtemp(prefix="qlab-fuzz-kept-")) / "model"
            shutil.copytree(folder, kept, symlinks=True)
            raise AssertionError(f"{command} on {kept}: {fault}")


def in_json(file: str, changes: list[tuple[int, Any]]) -> Callable[[Path], None]:
    """Put values at places of a JSON file, which are counted."""

    def change(folder: Path) -> None:
        known = json.loads((folder / file).read_text())
        places = paths(known)
        for number, value in changes:
            with_value(known, places[number % len(places)], value)
        (folder / file).write_text(json.dumps(known))

    return change


CHANGES = st.lists(st.tuples(st.integers(0, 10_000), JSON), min_size=1, max_size=3)


@pytest.mark.parametrize(
    ("model", "file", "command", "examples"),
    [
        ("plain", "config.json", "evaluate", 60),
        ("plain", "config.json", "dry-run", 25),
        ("plain", "config.json", "plan", 40),
        ("plain", "config.json", "serve", 40),
        ("plain", "tokenizer.json", "evaluate", 25),
        ("plain", "tokenizer.json", "gguf", 20),
        ("plain", "tokenizer_config.json", "evaluate", 25),
        ("plain", "generation_config.json", "evaluate", 20),
        ("awq", "config.json", "evaluate", 20),
        ("gptq", "config.json", "evaluate", 20),
        ("nf4", "config.json", "evaluate", 20),
        ("fp8", "config.json", "evaluate", 20),
        ("compressed", "config.json", "evaluate", 30),
        ("awq", "qlab.json", "evaluate", 20),
    ],
)
def test_values_of_json(models: Models, model: str, file: str, command: str, examples: int) -> None:
    @settings(SETTINGS, max_examples=examples * TIMES)
    @given(CHANGES)
    def changed(changes: list[tuple[int, Any]]) -> None:
        check(models, model, command, in_json(file, changes))

    changed()


@pytest.mark.parametrize(
    ("model", "file", "command", "examples"),
    [
        ("plain", "model.safetensors", "evaluate", 40),
        ("awq", "model.safetensors", "evaluate", 30),
        ("nf4", "model.safetensors", "evaluate", 20),
        ("gguf", "m.gguf", "evaluate", 60),
        ("gguf", "m.gguf", "plan", 60),
        ("gguf", "m.gguf", "serve", 30),
        ("plain", "config.json", "plan", 40),
        ("plain", "tokenizer.json", "evaluate", 20),
        ("awq", "qlab.json", "evaluate", 20),
    ],
)
def test_bytes(models: Models, model: str, file: str, command: str, examples: int) -> None:
    @settings(SETTINGS, max_examples=examples * TIMES)
    @given(mutations())
    def changed(mutate: Mutation) -> None:
        check(models, model, command, lambda folder: (folder / file).write_bytes(mutate((folder / file).read_bytes())))

    changed()


@pytest.mark.parametrize("model", ["plain", "awq", "gptq", "nf4", "fp8", "compressed"])
def test_headers_of_safetensors(models: Models, model: str) -> None:
    """What the header says of tensors: other names, types, shapes and places, in JSON that is whole."""

    @settings(SETTINGS, max_examples=20 * TIMES)
    @given(CHANGES)
    def changed(changes: list[tuple[int, Any]]) -> None:
        def change(folder: Path) -> None:
            whole = (folder / "model.safetensors").read_bytes()
            (length,) = struct.unpack("<Q", whole[:8])
            (folder / "header.json").write_bytes(whole[8 : 8 + length])
            in_json("header.json", changes)(folder)
            text = (folder / "header.json").read_bytes()
            (folder / "header.json").unlink()
            (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])

        check(models, model, "evaluate", change)

    changed()
