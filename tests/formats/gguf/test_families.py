"""GGUF files of the families that llama.cpp runs: it computes from them what transformers' class computes from the original."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
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
from qlab.serve.runtimes.llamacpp import LlamaCpp, post
from qlab.serve.server import on_free_port, serving
from qlab.support.errors import UserError
from tests.walk.families import DEEP, FAMILIES, LATENT, Family, make, mixture

STRETCHED = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 16, "mscale": 1.0, "mscale_all_dim": 1.0,
    "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip

REFUSED = {  # of the table, those that llama.cpp runs as another function; and what is not in it
    "exaone4": "only the one of 64 blocks has sliding windows there",
    "phimoe": "weighed by their softmax there, by SparseMixer",
    "llama4": "no GGUF writer for model type 'llama4_text'",
}
WRITTEN = [family for family in FAMILIES if family not in REFUSED]
MORE = {  # what a family may have besides
    "exaone4, all": Family("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "deepseek_v3, YaRN": mixture("deepseek_v3", DEEP, LATENT, rope_parameters=STRETCHED),
    "falcon, one key": Family("falcon", {"bias": False}),
    "granitemoehybrid, no experts": Family(
        "granitemoehybrid", FAMILIES["granitemoehybrid"].options | {"num_local_experts": 0, "intermediate_size": 96}
    ),
    "granitemoehybrid, rotary": mixture("granitemoehybrid", FAMILIES["granitemoehybrid"].options, position_embedding_type="rope"),
    "gemma3_text, six": Family("gemma3_text", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16, "num_hidden_layers": 6}),
}


def logits(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float()


def distance(file: Path, expected: Tensor, ids: list[int]) -> tuple[float, float]:
    """How far llama.cpp's log-probabilities of all tokens are from those of `expected` logits [tokens, vocabulary]: KL in nats, and
    relative to how these spread, at the median of three places (another expert may be chosen where two are alike)."""
    found = []
    with serving(LlamaCpp(), on_free_port(file)) as server:
        for length in range(len(ids), 0, -1):
            answer = post(server.url, "/completion", {"prompt": ids[:length], "n_predict": 1, "temperature": -1.0, "n_probs": 4096})
            if "completion_probabilities" not in answer:  # it says none where the likeliest token is a part of a letter
                continue
            named = answer["completion_probabilities"][0]["top_logprobs"]
            wanted = expected[length - 1].log_softmax(-1)[[entry["id"] for entry in named]]
            off = wanted - torch.tensor([entry["logprob"] for entry in named])
            found.append((float((wanted.exp() * off).sum()), float(off.std() / wanted.std())))
            if len(found) == 3:
                break
    return median(kl for kl, _ in found), median(relative for _, relative in found)


@pytest.mark.parametrize("family", [*WRITTEN, *MORE])
def test_llama_cpp_computes_the_model_and_it_is_read_back(
    family: str, calibration: Tensor, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    source = make(tmp_path / "source", MORE.get(family) or FAMILIES[family])
    made = quantize_model(source, [parse("f16"), parse("q4_k_m")], calibration[:2], tmp_path / "out")
    plain, quantized = (next(artifact.path.glob("*.gguf")) for artifact in made)
    ids = calibration[0, :48].tolist()  # longer than the sliding windows
    original = logits(load(source), ids)
    torch.testing.assert_close(logits(load(locate(str(plain))), ids), original, atol=1e-5, rtol=1e-5)
    kl, relative = distance(plain, original, ids)
    record_property("f16", f"{kl:.0e}")
    assert kl < 0.02
    assert relative < 0.01  # what is missed, a window, a norm, a scale of experts, makes 0.04 to 1
    kl, relative = distance(quantized, logits(load(locate(str(quantized))), ids), ids)
    record_property("q4_k_m", f"{kl:.0e}")
    assert kl < 0.05  # llama.cpp rounds activations to 8 bits, which may choose another expert
    assert len(made[1].errors) == len(source.layout.linear)


@pytest.mark.parametrize("family", REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused(family: str, calibration: Tensor, tmp_path: Path) -> None:
    source = make(tmp_path / "source", FAMILIES[family])
    with pytest.raises(UserError, match=REFUSED[family]):
        quantize_model(source, [parse("f16")], calibration, tmp_path / "out")


def test_every_architecture_is_tried() -> None:
    tried = {AutoConfig.for_model(FAMILIES[family].kind).get_text_config().model_type for family in FAMILIES}
    tried_elsewhere = {"llama", "mistral", "qwen2", "qwen3"}  # test_file.py
    assert (tried - {"llama4_text"}) | tried_elsewhere == {*ARCHITECTURES, *UNLIKE}
