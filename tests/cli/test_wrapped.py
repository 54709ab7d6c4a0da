"""A model that reads images too (Mistral 3), from the folder to its artifacts and figures, by the command line as its users type it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from qlab import ROOT
from tests.walk.families import FAMILIES, make

RECIPES = ["rtn-w4g32", "awq-w4g32", "gptq-w4g32", "nf4", "q4_k_m"]
TEXT = ["--window", "64", "--tokens", "256", "--results", ""]


def qlab(*words: str) -> str:
    """What the command prints; it ends with 0."""
    done = subprocess.run([sys.executable, "-m", "qlab", *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_mistral_3_is_quantized_measured_and_planned_and_its_tower_stays(tmp_path: Path) -> None:
    source = make(tmp_path / "model", FAMILIES["mistral3"])
    asked = [word for name in RECIPES for word in ("--recipe", name)]
    calibration = ["--windows", "4", "--length", "64"]
    printed = qlab("quantize", "--model", str(source.path), "--out", str(tmp_path / "out"), *asked, *calibration)
    assert "the file holds the language model alone" in printed
    whole = load_file(source.folder / "model.safetensors")
    beside = [name for name in whole if "vision_tower" in name or "projector" in name]
    assert len(beside) > 20
    for recipe in RECIPES[:-1]:
        tensors = load_file(tmp_path / "out" / recipe / "model.safetensors")
        assert all(torch.equal(tensors[name], whole[name]) for name in beside), recipe
        config = json.loads((tmp_path / "out" / recipe / "config.json").read_text())
        assert config["model_type"] == "mistral3"
        assert config["quantization_config"]
    assert list((tmp_path / "out" / "q4_k_m").glob("*.gguf"))
    found = qlab("evaluate", str(tmp_path / "out" / "gptq-w4g32"), "--reference", str(source.path), "--no-floor", "--json", *TEXT)
    figures = json.loads(found.splitlines()[-1])
    assert 0 < figures["kl"] < 0.5
    assert "What reads images" in qlab("plan", str(source.path), "--format", "awq")
