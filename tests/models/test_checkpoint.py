"""Checkpoints of every form: quantizing one gives, byte for byte, what quantizing its plain values gives."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlab.artifacts.artifact import quantize_model
from qlab.models.checkpoint import ROWS, Checkpoint
from qlab.models.opening import OpenedModel, locate
from qlab.recipes import parse
from qlab.support.errors import UserError
from tests.formats.gguf.writing import write_gguf

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}


def as_fp8(source: OpenedModel, folder: Path) -> Path:
    """The model with its linear layers in FP8 blocks."""
    shutil.copytree(source.path, folder)
    state = load_file(folder / "model.safetensors")
    for name in source.layout.linear:
        blocks = state[name].float().unflatten(0, (-1, 128)).unflatten(-1, (-1, 128))
        scale = blocks.abs().amax((1, 3)) / 448
        state[name] = (blocks / scale[:, None, :, None]).flatten(2, 3).flatten(0, 1).to(torch.float8_e4m3fn)
        state[f"{name}_scale_inv"] = scale
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(source.config | {"quantization_config": FP8}))
    return folder


def as_gguf(source: OpenedModel, folder: Path) -> Path:
    folder.mkdir()
    write_gguf(source.path, source.config, "q8_0", folder / "m.gguf")
    return folder


@pytest.mark.parametrize("make", [as_fp8, as_gguf])
def test_a_quantized_source_makes_the_bytes_of_its_plain_values(
    make: object, tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path
) -> None:
    source = locate(str(make(tiny, tmp_path / "stored")))  # type: ignore[operator]
    assert source.checkpoint.quantized
    plain = Path(shutil.copytree(tiny.path, tmp_path / "plain"))
    save_file(
        {name: source.checkpoint.read(name).contiguous() for name in tiny.layout.shapes}, plain / "model.safetensors", {"format": "pt"}
    )
    assert not locate(str(plain)).checkpoint.quantized
    recipes = [parse(name) for name in ("awq-w4g64", "q4_k_m")]
    ours = list(quantize_model(source, recipes, calibration, tmp_path / "ours"))
    theirs = list(quantize_model(locate(str(plain)), recipes, calibration, tmp_path / "theirs"))
    first, second = ((each[0].path / "model.safetensors").read_bytes() for each in (ours, theirs))
    assert first == second
    first_state, second_state = (locate(str(next(each[1].path.glob("*.gguf")))).checkpoint for each in (ours, theirs))
    for name in first_state.shapes:
        assert torch.equal(first_state.read(name), second_state.read(name)), name


def test_rows_are_those_of_the_whole_and_a_checkpoint_travels(tiny: OpenedModel, tmp_path: Path) -> None:
    for folder in (tiny.path, as_gguf(tiny, tmp_path / "gguf")):
        checkpoint: Checkpoint = pickle.loads(pickle.dumps(locate(str(folder)).checkpoint))
        name = "model.embed_tokens.weight"
        whole, pieces = checkpoint.read(name), list(checkpoint.rows(name))
        assert [first for first, _ in pieces] == list(range(0, 4096, ROWS))
        assert torch.equal(torch.cat([piece for _, piece in pieces]), whole)
        assert checkpoint.bytes_of(name) == whole.numel() * whole.element_size()


def test_what_is_said_of_how_weights_are_stored(tiny: OpenedModel, tmp_path: Path) -> None:
    assert (tiny.checkpoint.quantized, tiny.checkpoint.description) == (False, "FP16")
    found = locate(str(as_fp8(tiny, tmp_path / "fp8"))).checkpoint
    assert (found.quantized, found.description) == (True, "FP8 E4M3 in blocks of 128 x 128")
    found = locate(str(as_gguf(tiny, tmp_path / "gguf"))).checkpoint
    assert (found.quantized, found.description) == (True, "GGUF Q8_0")


def test_values_that_are_not_finite_are_never_handed_out(tiny: OpenedModel, tmp_path: Path) -> None:
    folder = as_fp8(tiny, tmp_path / "fp8")
    state, name = load_file(folder / "model.safetensors"), next(iter(tiny.layout.linear))
    state[f"{name}_scale_inv"][0, 0] = torch.inf
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"holds NaN or infinity"):
        locate(str(folder)).checkpoint.read(name)


def test_a_bound_that_is_none_is_no_damage_and_a_table_of_integers_no_code(tiny: OpenedModel, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.path, tmp_path / "bounds"))
    state = load_file(folder / "model.safetensors")
    more = {"low": torch.tensor(-torch.inf), "table": torch.arange(6).view(2, 3), "wrong": torch.tensor(torch.nan)}
    save_file(state | more, folder / "model.safetensors", {"format": "pt"})
    checkpoint = locate(str(folder)).checkpoint
    assert float(checkpoint.read("low")) == -torch.inf
    assert torch.equal(checkpoint.read("table"), more["table"])
    with pytest.raises(UserError, match="holds NaN or infinity"):
        checkpoint.read("wrong")


def test_a_gguf_file_beside_safetensors_is_not_taken_in_their_place(tiny: OpenedModel, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.path, tmp_path / "both"))
    write_gguf(folder, tiny.config, "q8_0", folder / "m.gguf")
    assert locate(str(folder)).checkpoint.description == "FP16"
    assert locate(str(folder / "m.gguf")).checkpoint.description == "GGUF Q8_0"
