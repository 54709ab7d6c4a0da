"""Task data from anywhere: what is damaged is one message before a model is loaded, and what was measured is kept."""

from __future__ import annotations

import bz2
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab.evaluate.tasks
import qlab.models.loading
from qlab.cli import call
from qlab.evaluate.local_tasks import hellaswag, lambada, questions
from qlab.evaluate.store.results import read
from qlab.evaluate.tasks import check_tasks
from qlab.models.opening import OpenedModel
from qlab.support.errors import UserError
from qlab.support.processes.process import peak_bytes
from qlab.support.reading import LARGEST

HEADER = "question,choice0,choice1,choice2,choice3,answer\n"
GOOD = HEADER + "why,a,b,c,d,0\n"
FILES: dict[str, dict[str, Any]] = {
    "mmlu": {"mmlu/test/anatomy_test.csv": GOOD, "mmlu/dev/anatomy_dev.csv": GOOD},
    "hellaswag": {"hellaswag/val.txt": "Cooking: A pan is\n1\nsky.\nhot.\nsad.\ntall.\n"},
    "lambada": {"lambada/test.jsonl": '{"text": "one two"}\n'},
}


def pipe(file: Path) -> None:
    os.mkfifo(file)


def loop(file: Path) -> None:
    file.symlink_to(file)


NONE = (Path.mkdir, pipe, loop)  # no files
NUMBER = "1" * 5000
DAMAGED: dict[str, tuple[Any, ...]] = {
    "mmlu/test/anatomy_test.csv": (
        "", HEADER, HEADER + "why,a,b\n", HEADER + "why,a,b,c,d,4\n", HEADER + f"why,a,b,c,d,{NUMBER}\n", HEADER + "x" * 200_000,
        HEADER + "w\0y,a,b,c,d,x\n", b"\xff\xfe\x00", *NONE,
    ),
    "mmlu/dev/anatomy_dev.csv": (None, "", *NONE),
    "hellaswag/val.txt": ("", "one line", "a\nb\nc\nd\ne\nf\n", f"a\n{NUMBER}\nc\nd\ne\nf", b"\xff", *NONE),
    "lambada/test.jsonl": (
        "", "{", "[]", "[" * 10**6, '{"text": 1}', '{"text": "one"}', '{"text": "a \\ud800"}', f'{{"text": "a b", "n": {NUMBER}}}',
        b"\xff", *NONE,
    ),
}  # fmt: skip


def put(folder: Path, files: dict[str, Any]) -> Path:
    """Files by name: their content, what makes them, or None where there shall be none."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Callable):  # type: ignore[arg-type]
            content(file)
        elif content is not None:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.mark.parametrize(("name", "number"), [(name, number) for name, cases in DAMAGED.items() for number in range(len(cases))])
def test_damaged_data_is_one_short_message_that_names_the_file(name: str, number: int, tmp_path: Path) -> None:
    task, content = name.partition("/")[0], DAMAGED[name][number]
    check_tasks([task], folder=put(tmp_path / "good", FILES[task]))
    started = time.monotonic()
    with pytest.raises(UserError) as refused:
        check_tasks([task], folder=put(tmp_path / "bad", FILES[task] | {name: content}))
    assert Path(name).name in str(refused.value)
    assert len(str(refused.value)) < 400
    assert time.monotonic() - started < 120


def test_what_grows_a_millionfold_is_not_unpacked(tmp_path: Path) -> None:
    packed = bz2.compress(bytes(10**7)) * 100  # a gigabyte out of a few kilobytes
    folder, before = put(tmp_path, {"hellaswag/val.txt.bz2": packed}), peak_bytes()
    with pytest.raises(UserError, match=r"val.txt.bz2 is damaged \(more than"):
        check_tasks(["hellaswag"], folder=folder)
    assert peak_bytes() - before < 4 * LARGEST


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text(st.sampled_from('a,"\n{}:0123 text'), max_size=60).map(str.encode)))
def test_any_bytes_are_tasks_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.txt"
        for made in (content, HEADER.encode() + content, b'{"text": "a b"}\n' + content):
            file.write_bytes(made)
            for reader in (questions, hellaswag, lambada):
                with suppress(UserError):
                    assert list(reader(file))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "no-such-task"], "no task 'no-such-task'"),
        (["--tasks", "x" * 5000], "no task 'xxx"),
        (["--tasks", ","], "no task ''"),
        (["--tasks", "heldout-cloze", "--text", "{short}"], "needs at least"),
        (["--tasks", "lambada", "--task-data", "{none}"], "no folder"),
        (["--tasks", "hellaswag", "--task-data", "{data}"], "holds no data of hellaswag"),
        (["--tasks", "mmlu_../x", "--task-data", "{data}"], "holds no data of mmlu_../x"),
        (["--tasks", "lambada", "--task-data", "{data}"], "test.jsonl"),
    ],
)
def test_tasks_are_checked_before_a_model_is_loaded(
    words: list[str], said: str, tiny: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(qlab.models.loading, "load_and_rest", load)
    (tmp_path / "short.txt").write_text("some words " * 40)
    put(tmp_path / "data", {"lambada/test.jsonl": "{"})
    named = {"{short}": tmp_path / "short.txt", "{none}": tmp_path / "none", "{data}": tmp_path / "data"}
    words = [str(named.get(word, word)) for word in words]
    assert call(["evaluate", str(tiny.path), "--window", "16", "--tokens", "32", "--results", "", *words]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert said in printed
    assert len(printed) < 400


@pytest.mark.parametrize("as_json", [False, True])
def test_what_was_measured_is_kept_though_a_task_fails(
    as_json: bool, tiny: OpenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_tasks(*_: Any) -> None:
        raise UserError("the data of lambada could not be had")

    monkeypatch.setattr(qlab.evaluate.tasks, "run_tasks", run_tasks)
    data, store = put(tmp_path / "data", FILES["lambada"]), tmp_path / "r.sqlite"
    words = ["--window", "16", "--tokens", "32", "--tasks", "lambada", "--task-data", str(data), "--results", str(store)]
    assert call(["evaluate", str(tiny.path), *words, *(["--json"] if as_json else [])]) == 2
    printed = capsys.readouterr()
    assert "could not be had" in printed.err
    assert "perplexity" in (json.loads(printed.out.splitlines()[-1]) if as_json else printed.out)
    assert list(read(store)["metric"]) == ["perplexity"]


def test_a_damaged_manifest_is_said_before_the_work(tiny: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny.path, folder)
    (folder / "qlab.json").write_text("{")
    (folder / "qlab-cost.json").write_text("{}")
    for command in (["evaluate", str(folder), "--window", "16", "--tokens", "32"], ["bench", str(folder)]):
        assert call([*command, "--results", ""]) == 2
        printed = capsys.readouterr()
        assert "qlab.json is damaged" in " ".join(printed.err.split())
        assert printed.out == ""
