"""Artifacts: whole or absent, made once, made again when an input changes."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from qlab.artifacts.artifact import make_artifact, quantize_model
from qlab.models.opening import OpenedModel, locate
from qlab.recipes import GGUF, Details, Recipe, parse
from qlab.support.errors import UserError


@dataclass(frozen=True)
class Failing(Recipe):
    """A recipe that writes half of what it should, then fails."""

    name: str = "failing"

    def quantize(self, source: OpenedModel, windows: torch.Tensor, out: Path, device: str) -> None:
        (out / "model.safetensors").write_bytes(b"half")
        raise UserError("no space for the other half")


@dataclass(frozen=True)
class Elsewhere(Recipe):
    """A recipe whose work another process did, with a library of another environment."""

    name: str = "elsewhere"

    def versions(self) -> dict[str, str]:
        return {"transformers": "1.0", "their-library": "2.0"}

    def quantize(self, source: OpenedModel, windows: torch.Tensor, out: Path, device: str) -> Details:
        shutil.copytree(source.path, out, dirs_exist_ok=True)
        return {"cost": {"seconds": 1234.5, "peak_bytes": 678}, "data": False}


def test_what_another_process_took_and_had_stands_in_the_notes(tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    made = make_artifact(Elsewhere(), tiny, calibration, str(tmp_path))
    assert (made.seconds, made.peak_bytes) == (1234.5, 678)
    assert "cost" not in json.loads((made.path / "qlab.json").read_text())
    versions = made.manifest["inputs"]["versions"]
    assert (versions["transformers"], versions["their-library"]) == ("1.0", "2.0")
    assert versions["qlab"] != "absent"


def test_the_same_inputs_are_not_quantized_twice(tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    first = make_artifact(GGUF("q8_0"), tiny, calibration, str(tmp_path))
    made = (first.path / "qlab.json").stat().st_mtime_ns
    assert make_artifact(GGUF("q8_0"), tiny, calibration, str(tmp_path)).path.joinpath("qlab.json").stat().st_mtime_ns == made
    again = make_artifact(GGUF("q8_0"), tiny, calibration + 1, str(tmp_path))
    assert again.path.joinpath("qlab.json").stat().st_mtime_ns != made
    assert first.peak_bytes > 50e6
    assert first.seconds > 0
    manifest = json.loads((again.path / "qlab.json").read_text())
    assert manifest["inputs"]["recipe"].items() >= {"recipe": "GGUF", "mix": "q8_0", "search": "settled"}.items()
    assert str(tmp_path) not in json.dumps(manifest)


def test_the_same_inputs_give_the_same_bytes(tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    files = [make_artifact(GGUF(), tiny, calibration, str(tmp_path / run)).path / "model-q4_k_m.gguf" for run in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_failure_leaves_nothing_behind(tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no space for the other half"):
        make_artifact(Failing(), tiny, calibration, str(tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_tokenizer_that_gguf_cannot_hold_is_refused_before_work_starts(
    tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny.path, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(UserError, match="this model has no tokenizer file"):
        quantize_model(locate(str(folder)), [parse("rtn-w4g32"), parse("q8_0")], calibration, tmp_path / "out")
    assert not (tmp_path / "out").exists()
