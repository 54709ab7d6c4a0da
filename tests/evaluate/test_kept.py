"""The reference's logits are kept, in memory or in a file, and are what the reference computes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from qlab.artifacts.budget import LACKING
from qlab.evaluate import kept
from qlab.evaluate.kept import Filed, kept_logits, logits_of, next_token_logits
from qlab.models.loading import load
from qlab.models.opening import locate
from qlab.support.errors import UserError


@pytest.fixture(scope="module")
def original() -> PreTrainedModel:
    return load(locate("embedded"))


WINDOWS = [torch.randint(1, 4096, (1, length), generator=torch.Generator().manual_seed(length)) for length in (16, 9, 30)]


def check(found: Sequence[torch.Tensor] | nn.Module, model: PreTrainedModel) -> None:
    with torch.inference_mode():
        for index, window in enumerate(WINDOWS):
            assert torch.equal(logits_of(found, index, window), next_token_logits(model, window))


def test_few_are_held_in_memory(original: PreTrainedModel) -> None:
    found = kept_logits(original, WINDOWS)
    assert isinstance(found, list)
    check(found, original)


def test_many_lie_in_a_file(original: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "IN_MEMORY", 1000)
    found = kept_logits(original, WINDOWS, tmp_path)
    assert isinstance(found, Filed)
    assert len(found) == len(WINDOWS)
    check(found, original)
    assert len(list(tmp_path.iterdir())) == 1
    del found
    assert not list(tmp_path.iterdir()), "the file goes with the object"


def test_the_folder_that_they_go_to_is_made(original: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "IN_MEMORY", 0)
    place = tmp_path / "not" / "there"
    assert isinstance(kept_logits(original, [torch.ones(1, 8, dtype=torch.int64)], place), Filed)
    assert place.is_dir()


def test_a_small_disk_is_told(original: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "IN_MEMORY", 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10_000))
    said = (
        r"no room for the reference's predictions for 3 windows: 0\.99 MB of disk are needed and 10\.0 KB free in .*1\.1 times their size"
    )
    with pytest.raises(UserError, match=said) as caught:
        kept_logits(original, WINDOWS, tmp_path)
    assert LACKING in str(caught.value), "a sweep tries it again on another machine"
    assert not list(tmp_path.iterdir())


def test_a_file_takes_its_size_of_the_disk_and_little_more(
    original: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "IN_MEMORY", 1000)
    size = 4 * 4096 * sum(window.numel() for window in WINDOWS)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1.2 * size))
    found = kept_logits(original, WINDOWS, tmp_path)
    assert isinstance(found, Filed)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < size
