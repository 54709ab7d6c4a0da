"""Where an adapter is to lie is seen to before it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import qlab.release.finetune
from qlab.artifacts.artifact import quantize_model
from qlab.models.opening import OpenedModel
from qlab.recipes import parse
from qlab.release.finetune import Training, finetune
from qlab.support.disk.lock import locked
from qlab.support.errors import UserError


@pytest.fixture(scope="module")
def base(tiny: OpenedModel, calibration: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    return quantize_model(tiny, [parse("nf4")], calibration, tmp_path_factory.mktemp("artifacts"))[0].source


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: Any) -> None:
        raise AssertionError("it is trained")

    monkeypatch.setattr(qlab.release.finetune, "train", train)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("where", ["inside", "the model", "file/adapter", "loop/adapter", "a file", "a folder", "a link"])
def test_a_place_that_is_taken_is_said_before_the_work(where: str, base: OpenedModel, untrained: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/thesis.txt").write_text("mine")
    (tmp_path / "link").symlink_to("none")
    places = {"inside": base.path / "adapter", "the model": base.path} | {
        f"a {name}": tmp_path / name for name in ("file", "folder", "link")
    }
    before = names(tmp_path), names(base.path)
    with pytest.raises(UserError, match=r"the model that is read|is not a folder|is there already"):
        finetune(base, torch.ones(2, 8, dtype=torch.int64), places.get(where, tmp_path / where), Training(steps=1))
    assert (names(tmp_path), names(base.path)) == before


def test_two_do_not_train_for_one_place(base: OpenedModel, untrained: None, tmp_path: Path) -> None:
    with (
        locked(tmp_path / ".adapter.lock", "adapter"),
        pytest.raises(UserError, match=r"adapter is being worked on by process \d+ on .* since"),
    ):
        finetune(base, torch.ones(2, 8, dtype=torch.int64), tmp_path / "adapter", Training(steps=1))
