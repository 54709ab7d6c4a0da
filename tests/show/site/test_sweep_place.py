"""A sweep is put into a folder of its own, and goes on there; what somebody else has put into a folder stays alone in it."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from qlab.show.site.sweep_page import TABLES, write_page
from qlab.show.site.sweep_place import PAGE, check_out
from qlab.support.errors import UserError
from qlab.sweep.plan import Sweep
from qlab.sweep.recommend import fitting


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def with_page(out: Path) -> Path:
    """The folder, with the page that a sweep writes there."""
    rows = pd.DataFrame([{"model": "m", "format": "nf4", "state": "not run", "why": ""}])
    table = fitting(rows, Sweep.model_validate({"models": ["m"], "recipes": ["nf4"]}), {"m": 1.0})
    write_page(out, dict(zip(TABLES, [table, *[pd.DataFrame()] * 3])), [], "", True)
    return out


def test_a_folder_that_is_new_or_empty_is_taken(out: Path, model: Path) -> None:
    check_out(out, [model], [])
    check_out(out / "new" / "folder", [model], [])


def test_a_folder_of_a_sweep_is_taken_with_whatever_lies_there(out: Path, model: Path) -> None:
    (with_page(out) / "notes.txt").write_text("mine")
    (out / "table.csv").write_text("the sweep's")
    check_out(out, [model], [])


def test_what_a_sweep_left_that_was_killed_before_its_page_is_taken(out: Path, model: Path) -> None:
    for name in ("jobs", "logs"):
        (out / name).mkdir()
    for name in (".lock", ".DS_Store"):
        (out / name).write_text("{}")
    check_out(out, [model], [])


def test_a_sweep_may_lie_beside_the_file_that_it_is_read_from(out: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (out / "plan.yaml").write_text("models: [m]")
    with pytest.raises(UserError, match=r"holds plan\.yaml"):
        check_out(out, [model], [])
    monkeypatch.chdir(out)
    check_out(out, [model], [Path("plan.yaml"), Path("plan.accepted.json")])


@pytest.mark.parametrize("name", ["notes.txt", "table.csv", "src"])
def test_a_folder_of_somebody_else_is_left_alone(name: str, out: Path, model: Path) -> None:
    (out / "logs").mkdir()
    (out / name).mkdir() if name == "src" else (out / name).write_text("mine")
    with pytest.raises(UserError) as refused:
        check_out(out, [model], [])
    assert f"{out} holds {name} and no sweep's page" in str(refused.value)
    assert f"choose another --out, such as {out / 'sweep'}" in str(refused.value)
    check_out(out / "sweep", [model], [])


@pytest.mark.parametrize("title", ["Mine", "qlab report", "Glossary · qlab"])
def test_a_page_of_somebody_else_or_of_a_report_is_left_alone(title: str, out: Path, model: Path) -> None:
    (out / PAGE).write_text(f"<title>{title}</title>")
    with pytest.raises(UserError, match=r"index\.html is left alone, since no sweep made it"):
        check_out(out, [model], [])


@pytest.mark.parametrize("kind", ["pipe", "loop", "folder"])
def test_what_is_no_file_in_the_place_of_the_page_is_left_alone(kind: str, out: Path, model: Path) -> None:
    {"pipe": os.mkfifo, "loop": lambda path: path.symlink_to(path), "folder": Path.mkdir}[kind](out / PAGE)
    with pytest.raises(UserError, match=r"index\.html is left alone"):
        check_out(out, [model], [])


@pytest.mark.parametrize("name", [".", "jobs", "logs", "artifacts", "lessons"])
def test_a_file_in_the_place_of_a_folder_is_left_alone(name: str, tmp_path: Path, model: Path) -> None:
    out = tmp_path / "sweep"
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    with pytest.raises(UserError, match="is not a folder"):
        check_out(out, [model], [])


def test_formats_may_lie_on_another_disk(tmp_path: Path, out: Path, model: Path) -> None:
    (tmp_path / "disk").mkdir()
    (out / "artifacts").symlink_to(tmp_path / "disk")
    check_out(out, [model], [])


def test_a_model_gets_no_sweep_into_its_folder_but_may_lie_in_a_sweeps(out: Path, model: Path) -> None:
    for place in (model, model / "sweep"):
        with pytest.raises(UserError, match="the model that is read"):
            check_out(place, [out, model], [])
    made = with_page(out) / "artifacts" / "m" / "nf4"
    made.mkdir(parents=True)
    check_out(out, [made], [])
