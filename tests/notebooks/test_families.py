"""Lessons on a mixture of experts and on a model that reads images, as a user runs them: they end, and what does not apply says why."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlab import ROOT
from tests.walk.families import FAMILIES, Family, make

SMALL = {"evaluation_windows": 6, "evaluation_length": 256, "calibration_windows": 8, "calibration_length": 128}
LONGER = {"max_position_embeddings": 1024}


def with_longer_context(family: Family) -> Family:
    """The family with room for the lessons' prompts."""
    if not family.parts:
        return replace(family, options=family.options | LONGER)
    return replace(family, parts=family.parts | {"text_config": family.parts["text_config"] | LONGER})


def run(kind: str, lessons: list[str], folder: Path) -> tuple[dict[str, Any], str]:
    """What the lessons recorded on a tiny model of a family, and all that the command and their cells printed."""
    make(folder / "model", with_longer_context(FAMILIES[kind]))
    words = [word for name, value in {**SMALL, "work": str(folder / "work")}.items() for word in ("-p", name, str(value))]
    command = [sys.executable, "-m", "qlab", "run", *lessons, "--model", str(folder / "model"), "--out", str(folder / "report"), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = done.stdout + done.stderr + "".join(path.read_text() for path in (folder / "report" / "notebooks").glob("*.ipynb"))
    return json.loads((folder / "report" / "results.json").read_text())["results"], printed


def test_a_mixture_of_experts(tmp_path: Path) -> None:
    results, printed = run("qwen3_moe", ["02_awq"], tmp_path)
    assert "Left out: AutoAWQ. AutoAWQ quantizes linear layers, and transformers 5 holds the experts of qwen3_moe in tensors" in printed
    assert results["quality/awq-w4g64"]["kl"] > 0
    assert results["methods"]["nearest"]
    assert results["awq/folding"]["folded"] < 1e-5 < results["awq/folding"]["control"]


def test_a_model_that_reads_images(tmp_path: Path) -> None:
    results, printed = run("gemma3", ["05_nf4"], tmp_path)
    assert "Left out" not in printed
    assert results["nf4/same-bytes"]
    assert set(results["nf4/training"]) >= {"NF4 (QLoRA)", "unquantized (control)"}


def test_lessons_on_gguf_are_left_out_where_llama_cpp_cannot_run_the_family(tmp_path: Path) -> None:
    results, printed = run("phimoe", ["04_gguf", "06_deployment"], tmp_path)
    assert not results
    for lesson in ("04_gguf", "06_deployment"):
        assert f"{lesson} left out: llama.cpp would run this phimoe model as another function" in " ".join(printed.split())
    assert "left out" in (tmp_path / "report" / "index.html").read_text()
