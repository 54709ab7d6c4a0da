"""GGUF files of the families that llama.cpp runs: it computes from them what transformers' class computes from the original."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from qlab.artifacts.artifact import quantize_model
from qlab.formats.gguf.architectures import ARCHITECTURES
from qlab.models.loading import load
from qlab.models.opening import locate
from qlab.recipes import parse
from tests.formats.gguf.test_file import assert_alike
from tests.walk.families import FAMILIES, make

# What of the table llama.cpp runs; the rest of ARCHITECTURES is in test_file.py.
WRITTEN = [
    "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss", "gemma", "gemma2", "gemma3", "mistral3", "phi4", "olmo2",
    "smollm3", "granite", "glm4", "cohere", "starcoder2", "stablelm",
]  # fmt: skip
READ = ["mixtral", "qwen2_moe", "qwen3_moe"]  # by qlab, too
ELSEWHERE = {"llama", "mistral", "qwen2", "qwen3"}


@pytest.mark.parametrize("family", WRITTEN)
def test_llama_cpp_computes_the_model(family: str, calibration: Tensor, tmp_path: Path) -> None:
    source = make(tmp_path / family, FAMILIES[family])
    made = quantize_model(source, [parse("f16"), parse("q4_k_m")], calibration, tmp_path / "out")
    ids = calibration[0, :48].tolist()  # longer than the sliding windows
    model = load(source)
    assert_alike(model, made[0].path / "model-f16.gguf", ids, 0.02)
    if family in READ:
        file = made[1].path / "model-q4_k_m.gguf"
        assert_alike(load(locate(str(file))), file, ids, 0.3)
        assert len(made[1].errors) == len(source.layout.linear)


def test_every_architecture_is_tried() -> None:
    tried = {FAMILIES[family].kind for family in WRITTEN} | ELSEWHERE | {"gemma3_text"}  # within gemma3
    assert tried - {"gemma3", "mistral3"} == set(ARCHITECTURES)
