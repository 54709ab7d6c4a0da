"""A model that reads images too (Mistral 3), from the folder to its artifacts and figures, by the command line as its users type it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qlab import ROOT
from qlab.cli import call
from tests.walk.families import FAMILIES, make

RECIPES = ["rtn-w4g32", "awq-w4g32", "gptq-w4g32", "nf4", "q4_k_m"]


def test_mistral_3_is_quantized_measured_and_planned_and_its_tower_stays(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path / "model", FAMILIES["mistral3"])
    words = ["quantize", "--model", str(source.path), "--out", str(tmp_path / "out"), "--windows", "4", "--length", "64"]
    command = [sys.executable, "-m", "qlab", *words, *(word for name in RECIPES for word in ("--recipe", name))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the file holds the language model alone" in done.stdout
    whole = load_file(source.folder / "model.safetensors")
    beside = [name for name in whole if "vision_tower" in name or "projector" in name]
    assert len(beside) > 20
    for recipe in RECIPES[:-1]:
        tensors = load_file(tmp_path / "out" / recipe / "model.safetensors")
        assert all(torch.equal(tensors[name], whole[name]) for name in beside), recipe
        config = json.loads((tmp_path / "out" / recipe / "config.json").read_text())
        assert config["model_type"] == "mistral3"
        assert config["quantization_config"]
    for recipe in ("gptq-w4g32", "q4_k_m"):  # a checkpoint of the whole model, and a file of the language model alone
        asked = ["--reference", str(source.path), "--no-floor", "--window", "64", "--tokens", "256", "--results", "", "--json"]
        assert call(["evaluate", str(tmp_path / "out" / recipe), *asked]) == 0
        assert 0 < json.loads(capfd.readouterr().out.splitlines()[-1])["kl"] < 0.1
    assert call(["plan", str(source.path), "--format", "awq"]) == 0
    assert "What reads images" in capfd.readouterr().out
