"""GGUF files: read back by gguf-py and transformers, run and tokenized by llama.cpp."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch

from qlab.deploy import llamacpp
from qlab.errors import UserError
from qlab.evaluate.quality import measure_quality
from qlab.formats.gguf import more_bits, pre_tokenizer_name, tensor_type, write_gguf
from qlab.model import Source, load, load_tokenizer, locate

TEXTS = [
    "Return the sum of the array's elements, 12345 of them.",
    "Les données   restent à la maison : 3,14 km².\n\n\tfin",
    "x = {'a': [1, 2]}",
]


@pytest.fixture(scope="module", params=["embedded", "second"])
def subject(request: pytest.FixtureRequest) -> Source:
    return locate("embedded" if request.param == "embedded" else str(request.getfixturevalue("second_model")))


@pytest.fixture(scope="module")
def files(subject: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for mix in ("f16", "q8_0", "q4_k_m"):
        made[mix] = tmp_path_factory.mktemp(mix) / f"{mix}.gguf"
        write_gguf(subject.path, subject.config, mix, made[mix])
    return made


def test_f16_is_the_model_itself_and_fewer_bits_are_farther(subject: Source, files: dict[str, Path]) -> None:
    reference = load(subject)
    windows = torch.randint(1, 4000, (4, 64), generator=torch.Generator().manual_seed(0))
    kl = {mix: measure_quality(load(locate(str(file.parent))), windows, reference).kl for mix, file in files.items()}
    assert kl["f16"] == pytest.approx(0, abs=1e-6)
    assert kl["f16"] < kl["q8_0"] < 0.1 * kl["q4_k_m"]
    assert kl["q4_k_m"] < 0.1


def test_the_mix_follows_llama_cpps_rules(files: dict[str, Path], subject: Source) -> None:
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(files["q4_k_m"]).tensors}
    assert kinds["token_embd.weight"] == "Q6_K"  # tied: it is the output too
    assert [kinds[f"blk.{i}.ffn_down.weight"] for i in range(4)] == ["Q4_K", "Q4_K", "Q6_K", "Q6_K"]
    assert kinds["blk.0.attn_q.weight"] == "Q4_K"
    assert kinds["blk.0.attn_norm.weight"] == kinds["output_norm.weight"] == "F32"


def test_llama_cpp_cuts_the_same_tokens_and_continues_alike(subject: Source, files: dict[str, Path]) -> None:
    tokenizer, model = load_tokenizer(subject), load(subject)
    with llamacpp.serving(files["f16"]) as url:
        for text in TEXTS:
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert llamacpp.post(url, "/tokenize", {"content": text})["tokens"] == ids
        ids = tokenizer.encode(TEXTS[0], add_special_tokens=False)
        body = {"prompt": ids, "n_predict": 12, "temperature": 0, "return_tokens": True, "ignore_eos": True}
        served = llamacpp.post(url, "/completion", body)["tokens"]
    expected = model.generate(torch.tensor([ids]), max_new_tokens=12, min_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
    agreeing = sum(a == b for a, b in zip(served, expected, strict=True))
    assert agreeing >= 10, (served, expected)  # arithmetic differs in the last bits: a near tie may fall otherwise


def test_more_bits_where_llama_cpp_has_them() -> None:
    assert [layer for layer in range(32) if more_bits(layer, 32)] == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert tensor_type("output.weight", 2, "q4_k_m", 32, tied=False) == "Q6_K"
    assert tensor_type("token_embd.weight", 2, "q4_k_m", 32, tied=False) == "Q4_K"


def test_unknown_kinds_are_refused(tiny: Source, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no GGUF writer for model type 'mamba'"):
        write_gguf(tiny.path, tiny.config | {"model_type": "mamba"}, "f16", tmp_path / "x.gguf")
    with pytest.raises(UserError, match="no GGUF mix 'q9'"):
        write_gguf(tiny.path, tiny.config, "q9", tmp_path / "x.gguf")
    with pytest.raises(UserError, match="not known here"):
        pre_tokenizer_name({"type": "Split", "pattern": {"Regex": "never seen"}})
