"""Tokenizers that ask for any memory or time: known before they are opened in this process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qlab.cli import call
from qlab.models.loading import load_tokenizer
from qlab.models.opening import OpenedModel, locate
from qlab.models.texts.tokenizer_trial import check_bounded
from qlab.support.errors import UserError
from qlab.support.processes.process import peak_bytes
from tests.fuzz.tokenizers import framed_by

DOUBLING = {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}] * 40}
HOSTILE: dict[str, tuple[str, Any, str]] = {
    "a letter becomes a million": ("normalizer", {"type": "Replace", "pattern": {"String": "e"}, "content": "x" * 10**6}, "memory"),
    "a letter doubled forty times": ("normalizer", DOUBLING, "(memory|seconds of computing)"),  # which comes first depends on the machine
    "tokens before every text": ("post_processor", framed_by(30_000), "memory"),
    "a letter becomes a hundred": (
        "normalizer",
        {"type": "Replace", "pattern": {"String": "e"}, "content": "\U0001f600 " * 45},
        "tokens of a text of",
    ),
}


def changed(folder: Path, part: str, value: Any) -> Path:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {part: value}))
    return file


@pytest.mark.parametrize(("part", "value", "said"), HOSTILE.values(), ids=HOSTILE)
def test_what_a_tokenizer_asks_for_is_bounded(part: str, value: Any, said: str, tiny: OpenedModel, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.path, tmp_path / "model"))
    changed(folder, part, value)
    before = peak_bytes()
    with pytest.raises(UserError, match=rf"model/tokenizer\.json .*{said}.*copy the original's again"):
        load_tokenizer(locate(str(folder)))
    assert peak_bytes() - before < 300e6


def test_a_tokenizer_that_cuts_by_chance_is_refused(tiny: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(tiny.path, tmp_path / "model"))
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    changed(folder, "model", model | {"dropout": 0.0})
    assert load_tokenizer(locate(str(folder))).encode("the array") == load_tokenizer(tiny).encode("the array")
    changed(folder, "model", model | {"dropout": 0.5})
    assert call(["evaluate", str(folder), "--window", "16", "--tokens", "32", "--results", ""]) == 2
    assert "drops merges by chance, 0.5 of them" in " ".join(capsys.readouterr().err.split())


def test_what_is_merely_damaged_or_whole_passes(tiny: OpenedModel, tmp_path: Path) -> None:
    check_bounded(tiny.path / "tokenizer.json")
    for content in (b"", b"{", b"[]", b"\xff", b'{"model": null}'):
        (tmp_path / "tokenizer.json").write_bytes(content)
        check_bounded(tmp_path / "tokenizer.json")
