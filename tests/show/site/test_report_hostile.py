"""A report overwrites nobody's files, two runs do not share a folder, and what is damaged of an earlier run is done again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from qlab import EMBEDDED
from qlab.artifacts.going_on import LOCK
from qlab.cli import call
from qlab.evaluate.store.provenance import machine
from qlab.show.site.report import check_report, write_report
from qlab.support.disk.lock import locked
from qlab.support.errors import UserError
from qlab.workbook.batch import runner
from qlab.workbook.batch.runner import DONE, NOTEBOOKS, Outcome, done_before

LESSON = "01_principles"


def executed(file: Path) -> Path:
    """A notebook as papermill leaves it."""
    cell = new_code_cell("model = ''")
    cell.metadata["tags"] = ["injected-parameters"]
    file.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[cell]), file)
    return file


def not_run(*_: Any) -> None:
    raise AssertionError("a lesson runs")


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_report_of_qlabs_is_written_anew(tmp_path: Path) -> None:
    executed(tmp_path / "notebooks" / f"{LESSON}.ipynb")
    facts = {"model": {"name": "m", "fingerprint": "f"}, "date": "", "commit": "", "versions": {}, "machine": machine()}
    write_report([Outcome(LESSON, DONE, {})], facts, tmp_path)
    assert {"index.html", "glossary.html", "results.json", f"{LESSON}.html"} <= set(files_in(tmp_path))
    check_report(tmp_path, [LESSON], EMBEDDED)
    check_report(tmp_path / "new" / "folder", [LESSON], EMBEDDED)


@pytest.mark.parametrize(
    "name", ["index.html", "glossary.html", "results.json", f"{LESSON}.html", f"notebooks/{LESSON}.ipynb", "notebooks", "."]
)
def test_a_users_file_in_the_place_of_a_report_stays(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "run_lessons", not_run)
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    if name.startswith("notebooks/"):  # as in qlab's own folder
        shutil.copyfile(NOTEBOOKS / f"{LESSON}.ipynb", out / name)
    elif name == ".":
        out.write_text("mine")
    else:
        (out / name).write_text("<title>mine</title>")
    before = files_in(tmp_path)
    assert call(["run", "01", "--out", str(out)]) == 2
    assert "choose another --out" in " ".join(capsys.readouterr().err.split())
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("kind", ["pipe", "loop", "folder"])
def test_what_is_no_file_in_the_place_of_a_report_stays(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "index.html"
    {"pipe": os.mkfifo, "loop": lambda path: path.symlink_to(path), "folder": Path.mkdir}[kind](place)
    with pytest.raises(UserError, match=r"index.html is left alone"):
        check_report(tmp_path, [LESSON], EMBEDDED)


def test_a_report_is_not_written_into_the_model(tmp_path: Path) -> None:
    for out in (EMBEDDED, EMBEDDED / "report", EMBEDDED.parent):
        with pytest.raises(UserError, match="the model that is read"):
            check_report(out, [LESSON], EMBEDDED)


def test_the_second_run_is_told_who_works_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "run_lessons", not_run)
    with locked(tmp_path / LOCK, "out"):
        assert call(["run", "01", "--out", str(tmp_path)]) == 2
    assert f"is being worked on by process {os.getpid()} on " in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "stamp",
    [b"", b"{", b"[]", b"\xff", b"[" * 5000,
     b'{"key": "k"}', b'{"key": "k", "seconds": null}', b'{"key": "k", "seconds": [1]}', b'{"seconds": 1}'],
)  # fmt: skip
def test_a_damaged_stamp_is_no_stamp(stamp: bytes, tmp_path: Path) -> None:
    notebook = executed(tmp_path / "a.ipynb")
    (tmp_path / "a.json").write_bytes(stamp)
    assert done_before(notebook, tmp_path / "a.json", "k") is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"cells": 1}', '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [1]}', None]
)
def test_a_damaged_notebook_is_not_done(content: str | None, tmp_path: Path) -> None:
    stamp: dict[str, Any] = {"key": "k", "seconds": 2.5, "peak_bytes": 7}
    (tmp_path / "a.json").write_text(json.dumps(stamp))
    assert done_before(executed(tmp_path / "b.ipynb"), tmp_path / "a.json", "k") == (2.5, 7, {})
    if content is not None:
        (tmp_path / "a.ipynb").write_text(content)
    assert done_before(tmp_path / "a.ipynb", tmp_path / "a.json", "k") is None
