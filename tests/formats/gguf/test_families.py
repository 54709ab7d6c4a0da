"""GGUF files of the families that llama.cpp runs: it computes from them what transformers' class computes from the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig

from qlab.artifacts.artifact import quantize_model
from qlab.formats.gguf.architectures import ARCHITECTURES, UNLIKE
from qlab.models.loading import load
from qlab.models.opening import locate
from qlab.recipes import parse
from qlab.support.errors import UserError
from tests.formats.gguf.test_file import assert_alike
from tests.walk.families import DEEP, FAMILIES, LATENT, Family, make, mixture

STRETCHED = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 16, "mscale": 1.0, "mscale_all_dim": 1.0,
    "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip

REFUSED = {  # of the table, those that llama.cpp runs as another function
    "exaone4": "only the one of 64 blocks has sliding windows there",
    "phimoe": "weighed by their softmax there, by SparseMixer",
}
WRITTEN = [family for family in FAMILIES if family not in REFUSED]
MORE = {  # what a family may have besides
    "exaone4": Family("exaone4", {"sliding_window": None}),
    "deepseek_v3, YaRN": mixture("deepseek_v3", DEEP, LATENT, rope_parameters=STRETCHED),
    "falcon, one key": Family("falcon", {"bias": False}),
    "gemma3_text, windows": Family("gemma3_text", {"head_dim": 16, "sliding_window": 16, "num_hidden_layers": 6}),
}


def logits(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float()


@pytest.mark.parametrize("family", [*WRITTEN, *MORE])
def test_llama_cpp_computes_the_model_and_it_is_read_back(family: str, calibration: Tensor, tmp_path: Path) -> None:
    source = make(tmp_path / "source", MORE.get(family) or FAMILIES[family])
    made = quantize_model(source, [parse("f16"), parse("q4_k_m")], calibration, tmp_path / "out")
    ids = calibration[0, :48].tolist()  # longer than the sliding windows
    original = logits(load(source), ids)
    assert len(made[1].errors) == len(source.layout.linear)
    for artifact, tolerance in zip(made, (0.02, 0.3), strict=True):
        (file,) = artifact.path.glob("*.gguf")
        read = load(locate(str(file)))
        assert_alike(read, file, ids, tolerance)  # llama.cpp rounds activations to 8 bits where weights are quantized
        if tolerance < 0.1:
            torch.testing.assert_close(logits(read, ids), original, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused(family: str, calibration: Tensor, tmp_path: Path) -> None:
    source = make(tmp_path / "source", FAMILIES[family])
    with pytest.raises(UserError, match=REFUSED[family]):
        quantize_model(source, [parse("f16")], calibration, tmp_path / "out")


def test_every_architecture_is_tried() -> None:
    tried = {AutoConfig.for_model(FAMILIES[family].kind).get_text_config().model_type for family in FAMILIES}
    assert tried | {"llama", "mistral", "qwen2", "qwen3"} == {*ARCHITECTURES, *UNLIKE}  # these in test_file.py
