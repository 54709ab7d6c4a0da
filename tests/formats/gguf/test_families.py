"""GGUF files of the families that llama.cpp runs: it computes from them what transformers' class computes from the original."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from qlab.support.errors import UserError
from tests.formats.gguf.answering import OneProcess
from tests.walk.families import DEEP, FAMILIES, LATENT, Family, make, mixture, wrapped

STRETCHED = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 16, "mscale": 1.0, "mscale_all_dim": 1.0,
    "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip

UNKNOWN = "no GGUF writer for model type"
REFUSED = {  # of the table, those that llama.cpp runs as another function; and what is not in it
    "exaone4": "only the one of 64 blocks has sliding windows there",
    "phimoe": "weighed by their softmax there, by SparseMixer",
    "llama4": f"{UNKNOWN} 'llama4_text'",
    "olmo_hybrid": f"{UNKNOWN} 'olmo_hybrid'",
    "xglm": f"{UNKNOWN} 'xglm'",
}
WRITTEN = [family for family in FAMILIES if family not in REFUSED]
MORE = {  # what a family may have besides
    "exaone4, all": Family("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "deepseek_v3, YaRN": mixture("deepseek_v3", DEEP, LATENT, rope_parameters=STRETCHED),
    "mixtral, one expert": mixture("mixtral", {"num_local_experts": 1, "num_experts_per_tok": 1}),
    "bloom, six heads": Family("bloom", {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": None}),  # slopes of two kinds
    "falcon, one key": Family("falcon", {"bias": False}),
    "granitemoehybrid, no experts": Family(
        "granitemoehybrid", FAMILIES["granitemoehybrid"].options | {"num_local_experts": 0, "intermediate_size": 96}
    ),
    "granitemoehybrid, rotary": mixture("granitemoehybrid", FAMILIES["granitemoehybrid"].options, position_embedding_type="rope"),
    "gemma3_text, six": Family("gemma3_text", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16, "num_hidden_layers": 6}),
}


@pytest.fixture(scope="module")
def llama_cpp() -> Iterator[OneProcess]:
    found = OneProcess()
    yield found
    found.close()


def logits(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float()


def distance(llama_cpp: OneProcess, file: Path, expected: Tensor, ids: list[int]) -> tuple[float, float]:
    """How far llama.cpp's log-probabilities of all tokens are from those of `expected` logits [tokens, vocabulary]: KL in nats, and
    relative to how these spread, at the median of three places (another expert may be chosen where two are alike)."""
    found = []
    for length, named in llama_cpp.ask(file, ids, 4096):
        wanted = expected[length - 1].log_softmax(-1)[[entry["id"] for entry in named]]
        off = wanted - torch.tensor([entry["logprob"] for entry in named])
        found.append((float((wanted.exp() * off).sum()), float(off.std() / wanted.std())))
    return median(kl for kl, _ in found), median(relative for _, relative in found)


@pytest.mark.parametrize("family", [*WRITTEN, *MORE])
def test_llama_cpp_computes_the_model_and_it_is_read_back(
    family: str, calibration: Tensor, tmp_path: Path, llama_cpp: OneProcess, record_property: Callable[[str, object], None]
) -> None:
    source = make(tmp_path / "source", MORE.get(family) or FAMILIES[family])
    made = quantize_model(source, [parse("f16"), parse("q4_k_m")], calibration[:2], tmp_path / "out")
    plain, quantized = (next(artifact.path.glob("*.gguf")) for artifact in made)
    ids = calibration[0, :48].tolist()  # longer than the sliding windows
    original = logits(load(source), ids)
    torch.testing.assert_close(logits(load(locate(str(plain))), ids), original, atol=1e-5, rtol=1e-5)
    kl, relative = distance(llama_cpp, plain, original, ids)
    record_property("f16", f"{kl:.0e}")
    assert kl < 0.02
    assert relative < 0.01  # what is missed, a window, a norm, a scale of experts, makes 0.04 to 1
    kl, relative = distance(llama_cpp, quantized, logits(load(locate(str(quantized))), ids), ids)
    record_property("q4_k_m", f"{kl:.0e}")
    assert kl < 0.05  # llama.cpp rounds activations to 8 bits, which may choose another expert
    assert len(made[1].errors) == len(source.layout.linear)


@pytest.mark.parametrize("family", REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused(family: str, calibration: Tensor, tmp_path: Path) -> None:
    source = make(tmp_path / "source", FAMILIES[family])
    with pytest.raises(UserError, match=REFUSED[family]):
        quantize_model(source, [parse("f16")], calibration, tmp_path / "out")


@pytest.mark.parametrize("kind", ["cohere2", "granite"])
def test_logits_that_the_class_around_a_language_model_leaves_as_they_are_are_refused(kind: str, tmp_path: Path) -> None:
    """As Aya Vision's: its class multiplies them by nothing, and that of its language model, as llama.cpp, by logit_scale."""
    around, setting = {"cohere2": ("aya_vision", "logit_scale"), "granite": ("llava_next", "logits_scaling")}[kind]
    vision = {"model_type": "siglip_vision_model"}
    for value in (4.0, 1.0):
        source = make(tmp_path / str(value), wrapped(around, {"model_type": kind, setting: value}, vision, image_token_index=4095))
        if value == 1.0:
            parse("f16").check(source)
            continue
        with pytest.raises(UserError, match=rf"this {around} model as another function \(a logit of 1 becomes [0-9.]+ there, as in"):
            parse("f16").check(source)


def test_every_architecture_is_tried() -> None:
    tried = {AutoConfig.for_model(FAMILIES[family].kind).get_text_config().model_type for family in FAMILIES}
    tried_elsewhere = {"llama", "mistral", "qwen2", "qwen3"}  # test_file.py
    unknown = {message.split("'")[1] for message in REFUSED.values() if message.startswith(UNKNOWN)}
    assert (tried - unknown) | tried_elsewhere == {*ARCHITECTURES, *UNLIKE}
