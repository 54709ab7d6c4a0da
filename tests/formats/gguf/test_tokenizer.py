"""Tokenizers inside GGUF files: llama.cpp cuts texts as transformers does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from qlab.formats.gguf.file import write_gguf
from qlab.formats.gguf.tokenizer import pre_tokenizer_name, read_vocabulary
from qlab.models.opening import OpenedModel
from qlab.serve.runtimes.llamacpp import LlamaCpp, post
from qlab.serve.server import on_free_port, serving
from qlab.support.errors import UserError

TEXTS = [
    "Return the sum of the array's elements, 12345 of them.",
    "Les données   restent à la maison : 3,14 km².\n\n\tfin ",
    "  x = {'a': [1, 2]}  # 你好",
    "",
]
SIZE = 600


def corpus() -> list[str]:
    """A text to train on, the same everywhere: this very file."""
    return Path(__file__).read_text(encoding="utf-8").splitlines()


def train_json(folder: Path, prepend: bool) -> None:
    """A tokenizer.json as Llama 2 and Mistral have it: BPE over ▁-marked text, bytes for what is left."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    # Trained on words that end before a space, as SentencePiece does; used without a pre-tokenizer.
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁]+|▁"), "isolated")
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=SIZE, special_tokens=["<unk>", "<s>", "</s>", *bytes_]))
    description = json.loads(tokenizer.to_str())
    description["pre_tokenizer"] = None
    steps = [{"type": "Prepend", "prepend": "▁"}] if prepend else []
    description["normalizer"] = {
        "type": "Sequence",
        "normalizers": [*steps, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}],
    }
    description["added_tokens"] = [token for token in description["added_tokens"] if token["content"] not in bytes_]
    tokenizer = Tokenizer.from_str(json.dumps(description))
    tokenizer.add_special_tokens([AddedToken("<|turn|>", special=True)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings["chat_template"] = "{% for m in messages %}<|turn|>{{ m['content'] }}{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def train_sentencepiece(folder: Path) -> None:
    """A tokenizer.model alone."""
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_prefix=str(folder / "tokenizer"), vocab_size=SIZE, model_type="bpe", byte_fallback=True,
        character_coverage=0.99, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False, "bos_token": "<s>", "eos_token": "</s>"}))


def model_with(folder: Path, tiny: OpenedModel, vocabulary: int) -> dict[str, object]:
    """The tiny model, its embedding cut to the vocabulary, in `folder`; returns its configuration."""
    weights = load_file(tiny.path / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:vocabulary].clone()
    save_file(weights, folder / "model.safetensors")
    return tiny.config | {"vocab_size": vocabulary, "bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize("prepend", [True, False])
def test_llama_cpp_cuts_as_a_byte_fallback_tokenizer_json(prepend: bool, tiny: OpenedModel, tmp_path: Path) -> None:
    train_json(tmp_path, prepend)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    config = model_with(tmp_path, tiny, len(tokenizer) + 3)  # three embeddings without a token
    write_gguf(tmp_path, config, "q8_0", tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert "turn" in fields["tokenizer.chat_template"].contents()
    assert fields["tokenizer.ggml.token_type"].contents()[:4] == [2, 3, 3, 6]  # unknown, control twice, the first byte
    with serving(LlamaCpp(), on_free_port(tmp_path / "m.gguf")) as server:
        for text in [*TEXTS, "a<|turn|>b"]:
            ids = tokenizer.encode(text, add_special_tokens=False)
            body = {"content": text, "parse_special": True}
            assert post(server.url, "/tokenize", body)["tokens"] == ids, text


def test_llama_cpp_cuts_as_a_sentencepiece_model(tiny: OpenedModel, tmp_path: Path) -> None:
    train_sentencepiece(tmp_path)
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|turn|>": SIZE}))
    config = model_with(tmp_path, tiny, SIZE + 8)
    write_gguf(tmp_path, config, "f16", tmp_path / "m.gguf")
    tokens = gguf.GGUFReader(tmp_path / "m.gguf").fields["tokenizer.ggml.tokens"].contents()
    assert tokens[SIZE] == "<|turn|>"
    assert tokens[SIZE + 1] == f"[PAD{SIZE + 1}]"
    with serving(LlamaCpp(), on_free_port(tmp_path / "m.gguf")) as server:
        for text in TEXTS:
            assert post(server.url, "/tokenize", {"content": text})["tokens"] == pieces.encode(text), text


@pytest.mark.parametrize("name", ["llama-bpe", "dbrx", "qwen2", "tekken", "gpt-2", "smollm"])
def test_byte_level_pre_tokenizers_have_names(name: str) -> None:
    from qlab.formats.gguf.tokenizer import PRE_TOKENIZERS

    pattern = next((pattern for pattern, known in PRE_TOKENIZERS.items() if known == {"dbrx": "llama-bpe"}.get(name, name)), "")
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    first = [{"type": "Digits", "individual_digits": True}] if name == "smollm" else [split] if pattern else []
    description = {"type": "Sequence", "pretokenizers": [*first, {"type": "ByteLevel"}]}
    assert pre_tokenizer_name(description, ignore_merges=name == "llama-bpe") == name


def test_unknown_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not known here"):
        pre_tokenizer_name({"type": "Split", "pattern": {"Regex": "never seen"}})
    with pytest.raises(UserError, match="not known here"):
        pre_tokenizer_name({"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, {"type": "ByteLevel"}]})
    with pytest.raises(UserError, match="no tokenizer file"):
        read_vocabulary(tmp_path, 10)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram", "vocab": []}}))
    with pytest.raises(UserError, match="this model has Unigram"):
        read_vocabulary(tmp_path, 10)


def test_special_tokens_and_missing_ones(tiny: OpenedModel, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny.path / name, tmp_path / name)
    vocabulary = read_vocabulary(tmp_path, 4100)
    assert vocabulary.model == "gpt2"
    assert vocabulary.scores is None
    assert vocabulary.kinds[4099] is gguf.TokenType.UNUSED
    assert vocabulary.kinds[0] is gguf.TokenType.CONTROL
    assert torch.tensor([kind is gguf.TokenType.NORMAL for kind in vocabulary.kinds]).sum() > 4000
