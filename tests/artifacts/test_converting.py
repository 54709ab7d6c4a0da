"""A checkpoint of grouped integers in another layout: the same numbers, and the bytes that quantizing into that layout gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qlab.artifacts.artifact import Artifact, quantize_model
from qlab.artifacts.converting import convert
from qlab.models.opening import OpenedModel, locate
from qlab.recipes import parse
from qlab.support.errors import UserError

RECIPES = ("awq-w4g64", "gptq-w4g64", "gptq-w8grow-asym")


@pytest.fixture(scope="module")
def made(tiny: OpenedModel, calibration: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converting")
    quantize_model(tiny, [parse(f"{name}{ending}") for name in RECIPES for ending in ("", "-ct")], calibration, out)
    quantize_model(tiny, [parse("gptq-w4g64-asym-actorder")], calibration, out)
    return out


@pytest.mark.parametrize("name", RECIPES)
def test_converted_and_quantized_are_the_same_bytes(name: str, made: Path, tmp_path: Path) -> None:
    found = convert(locate(str(made / name)), "compressed-tensors", tmp_path / "out")
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (found.path / file).read_bytes() == (made / f"{name}-ct" / file).read_bytes(), file
    assert found.errors == Artifact.open(made / name).errors  # type: ignore[union-attr]


@pytest.mark.parametrize("name", RECIPES)
def test_there_and_back_is_the_same_checkpoint(name: str, made: Path, tmp_path: Path) -> None:
    kind = json.loads((made / name / "config.json").read_text())["quantization_config"]["quant_method"]
    there = convert(locate(str(made / name)), "compressed-tensors", tmp_path / "there")
    back = convert(there.source, kind, tmp_path / "back")
    assert (back.path / "model.safetensors").read_bytes() == (made / name / "model.safetensors").read_bytes()
    assert json.loads((back.path / "config.json").read_text()) == json.loads((made / name / "config.json").read_text())


def test_scattered_groups_keep_their_order(made: Path, tmp_path: Path) -> None:
    source = locate(str(made / "gptq-w4g64-asym-actorder"))
    found = convert(source, "compressed-tensors", tmp_path / "out").source
    for name in source.checkpoint.shapes:
        one, other = source.checkpoint.read(name), found.checkpoint.read(name)
        assert torch.equal(one.half(), other.half()), name
    with pytest.raises(UserError, match="without activation order"):
        convert(source, "awq", tmp_path / "awq")
    assert not (tmp_path / "awq").exists()


def test_what_cannot_be_converted_is_refused(made: Path, tiny: OpenedModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tiny is not quantized: convert changes between awq, gptq, compressed-tensors"):
        convert(tiny, "awq", tmp_path / "out")
    with pytest.raises(UserError, match="has 8 bits, and the AWQ format holds 4"):
        convert(locate(str(made / "gptq-w8grow-asym")), "awq", tmp_path / "out")
    with pytest.raises(UserError, match="no layout 'marlin': expected awq, gptq, compressed-tensors"):
        convert(locate(str(made / "awq-w4g64")), "marlin", tmp_path / "out")
    with pytest.raises(UserError, match="choose another --out"):
        convert(locate(str(made / "awq-w4g64")), "compressed-tensors", made / "awq-w4g64")
    assert list(tmp_path.iterdir()) == []
