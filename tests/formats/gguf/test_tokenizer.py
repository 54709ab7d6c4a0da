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

from qlab import EMBEDDED
from qlab.formats.gguf.reading import GGUFFiles
from qlab.formats.gguf.tokens.splitting import BY_NAME, BYTES, MERGING, SAME, WAYS, name_of, splitter, way
from qlab.formats.gguf.tokens.tokenizer import read_vocabulary
from qlab.formats.gguf.tokens.tokenizer_file import read_description
from qlab.formats.gguf.tokens.tokenizer_rules import tokenizer_remarks
from qlab.formats.gguf.tokens.vocabulary import checked_arrays
from qlab.models.opening import OpenedModel
from qlab.serve.runtimes.llamacpp import LlamaCpp, post
from qlab.serve.server import on_free_port, serving
from qlab.support.errors import UserError
from tests.formats.gguf.writing import write_gguf

TEXTS = [
    "Return the sum of the array's elements, 12345 of them.",
    "Les données   restent à la maison : 3,14 km².\n\n\tfin ",
    "  x = {'a': [1, 2]}  # 你好",
    "",
]
SIZE = 600
USUAL = {name: usual for usual, names in SAME.items() for name in names}


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


def train_sentencepiece(folder: Path, **changed: object) -> None:
    """A tokenizer.model alone, as Llama 2's was trained but for what is `changed`."""
    sentencepiece = pytest.importorskip("sentencepiece")
    as_llama = {
        "model_type": "bpe", "byte_fallback": True, "split_digits": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True, "character_coverage": 0.99,
    }  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_prefix=str(folder / "tokenizer"), vocab_size=SIZE, minloglevel=2, **as_llama | changed
    )
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


@pytest.mark.parametrize("space_first", [True, False])
def test_llama_cpp_cuts_as_a_sentencepiece_model(space_first: bool, tiny: OpenedModel, tmp_path: Path) -> None:
    train_sentencepiece(tmp_path, add_dummy_prefix=space_first)
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


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"model_type": "unigram"}, "another kind than BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "changes text before it is cut"),
        ({"remove_extra_whitespaces": True}, "drops repeated spaces"),
        ({"treat_whitespace_as_suffix": True}, "marks spaces at the end of words"),
    ],
)
def test_a_sentencepiece_model_that_llama_cpp_would_not_follow_is_refused(changed: dict[str, object], rule: str, tmp_path: Path) -> None:
    train_sentencepiece(tmp_path, **changed)
    with pytest.raises(UserError, match=rf"the tokenizer .*{rule}.*, which a GGUF file cannot express"):
        read_vocabulary(tmp_path, SIZE)


def test_a_tokenizer_model_that_is_cut_off_or_something_else_is_damaged(tmp_path: Path) -> None:
    train_sentencepiece(tmp_path)
    file = tmp_path / "tokenizer.model"
    whole = file.read_bytes()
    for damaged in (whole[:-3], b"version https://git-lfs.github.com/spec/v1"):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"tokenizer\.model is damaged"):
            read_vocabulary(tmp_path, SIZE)


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
SPLIT = {"type": "Split", "pattern": {"Regex": r"\s+"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("part", "rule"),
    [
        ({"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}}, "puts a space before every text"),
        ({"pre_tokenizer": BYTE_LEVEL | {"use_regex": False}}, "does not split text into words"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, BYTE_LEVEL]}}, "splits text twice"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTE_LEVEL, DIGITS]}}, "as its last step"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT | {"behavior": "Removed"}, BYTE_LEVEL | {"use_regex": False}]}},
            "what lies between",
        ),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "NFKC"}]}}, "normalizer NFKC"),
        ({"model": {"end_of_word_suffix": "</w>"}}, "merges with end_of_word_suffix"),
    ],
)
def test_a_byte_level_rule_that_gguf_cannot_express_is_refused(part: dict[str, dict[str, object]], rule: str, tmp_path: Path) -> None:
    description = json.loads((EMBEDDED / "tokenizer.json").read_text())
    changed = description | part | {"model": description["model"] | part.get("model", {})}
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
    AutoTokenizer.from_pretrained(tmp_path)  # such a tokenizer there can be
    with pytest.raises(UserError, match=rf"the tokenizer .*{rule}.*, which a GGUF file cannot express"):
        read_vocabulary(tmp_path, 4096)


@pytest.mark.parametrize(
    ("part", "rule"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre-tokenizer Whitespace"),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}}, "splits text at spaces"),
    ],
)
def test_a_rule_beside_marked_spaces_that_gguf_cannot_express_is_refused(part: dict[str, object], rule: str, tmp_path: Path) -> None:
    train_json(tmp_path, prepend=True)
    description = json.loads((tmp_path / "tokenizer.json").read_text())
    read_vocabulary(tmp_path, SIZE)
    description["model"]["vocab"]["▁▁"] = 9999
    (tmp_path / "tokenizer.json").write_text(json.dumps(description | part))
    with pytest.raises(UserError, match=rf"the tokenizer .*{rule}.*, which a GGUF file cannot express"):
        read_vocabulary(tmp_path, SIZE)


def test_what_llama_cpp_cuts_otherwise_in_rare_texts_is_told(tmp_path: Path) -> None:
    assert tokenizer_remarks(tmp_path) == ""
    description = json.loads((EMBEDDED / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    assert tokenizer_remarks(tmp_path) == ""
    description["added_tokens"][0]["rstrip"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(description | {"normalizer": {"type": "NFC"}}))
    read_vocabulary(tmp_path, 4096)
    assert "Unicode's NFC" in tokenizer_remarks(tmp_path)
    assert description["added_tokens"][0]["content"] in tokenizer_remarks(tmp_path)


def test_words_that_only_one_of_both_takes_whole_are_told(tmp_path: Path) -> None:
    description = json.loads((EMBEDDED / "tokenizer.json").read_text())
    split = SPLIT | {"pattern": {"Regex": WAYS["qwen2"][0]}}
    description["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL | {"use_regex": False}]}
    model = description["model"] | {"vocab": description["model"]["vocab"] | {"qqqq": 4096}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(description | {"model": model}))
    assert tokenizer_remarks(tmp_path) == ""
    (tmp_path / "tokenizer.json").write_text(json.dumps(description | {"model": model | {"ignore_merges": True}}))
    assert "1 token such as 'qqqq' that its merges do not make: it takes them whole, llama.cpp merges" in tokenizer_remarks(tmp_path)


@pytest.mark.parametrize("name", [*WAYS, "dbrx"])
def test_byte_level_pre_tokenizers_have_names(name: str) -> None:
    steps = [{"type": "Split", "pattern": {"Regex": each}, "behavior": "Isolated"} for each in BY_NAME[name]]
    at = BY_NAME[name].index(BYTES)
    description = {"type": "Sequence", "pretokenizers": [*steps[:at], BYTE_LEVEL | {"use_regex": False}, *steps[at + 1 :]]}
    assert name_of(description, ignore_merges=name == "llama-bpe") == name
    assert way(json.loads(splitter(name).__getstate__())) == WAYS[USUAL.get(name, name)]


def test_every_name_of_llama_cpp_is_known_once() -> None:
    assert len(BY_NAME) == len(WAYS) + len(USUAL)
    assert set(MERGING) < set(BY_NAME)


@pytest.mark.parametrize("pre_tokenizer", [[SPLIT | {"pattern": {"Regex": "never\nseen"}}], [{"type": "Whitespace"}], [DIGITS]])
def test_a_way_of_splitting_without_a_name_is_refused(pre_tokenizer: list[dict[str, object]], tmp_path: Path) -> None:
    description = json.loads((EMBEDDED / "tokenizer.json").read_text())
    last = BYTE_LEVEL | {"use_regex": pre_tokenizer == [{"type": "Whitespace"}]}
    description["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*pre_tokenizer, last]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(
        UserError, match=r"splits text by (never\\nseen|Whitespace|Digits); a GGUF file names such a rule, and qlab knows no"
    ):
        read_vocabulary(tmp_path, 4096)


def test_unknown_tokenizers_are_refused(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000])
def test_a_damaged_tokenizer_is_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json (is not JSON|holds no JSON object|is nested too deeply).*copy it again"):
        read_vocabulary(tmp_path, 10)


BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
ADDED = {"id": 3, "content": "<s>", "special": True}


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"model": None}, "model"),
        ({"model": []}, "model"),
        ({"model": BPE | {"vocab": ["a"]}}, "model"),
        ({"model": BPE | {"vocab": {"a": "0"}}}, "model"),
        ({"model": BPE | {"vocab": {"a": -1}}}, "model"),
        ({"model": BPE | {"merges": ["ab"]}}, "model"),
        ({"model": BPE | {"merges": [["a", "b", "c"]]}}, "model"),
        ({"added_tokens": [{"content": "<s>"}]}, r"added_tokens\.0\.id"),
        ({"added_tokens": [ADDED | {"content": 5}]}, r"added_tokens\.0\.content"),
        ({"added_tokens": [ADDED | {"special": 1}]}, r"added_tokens\.0\.special"),
        ({"normalizer": {"type": "Replace"}}, "normalizer"),
        ({"normalizer": {"type": "Sequence"}}, "normalizer"),
        ({"normalizer": {"type": "Sequence", "normalizers": [5]}}, "normalizer"),
        ({"pre_tokenizer": {"type": "Split", "pattern": "x"}}, r"pre_tokenizer\.pattern"),
        ({"post_processor": []}, "post_processor"),
    ],
)
def test_a_tokenizer_json_is_as_the_library_writes_it_or_refused(changed: dict[str, object], where: str, tmp_path: Path) -> None:
    whole = {"model": BPE, "added_tokens": [ADDED], "normalizer": None, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(whole))
    assert read_description(file) == whole
    file.write_text(json.dumps(whole | changed))
    with pytest.raises(UserError, match=rf"/tokenizer\.json is damaged \({where}.*copy the original's again"):
        read_description(file)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"token_type": [1]}, "token_type and scores are not as many as tokens"),
        ({"scores": [0.0] * 4}, "token_type and scores are not as many as tokens"),
        ({"token_type": []}, "not as many"),
        ({"token_type": [1, 1, 99]}, "token_type.2"),
        ({"scores": [0.0, float("nan"), 0.0]}, "scores.1"),
        ({"tokens": ["a", "b", 5]}, "tokens.2"),
        ({"merges": [5]}, "merges.0"),
    ],
)
def test_a_vocabulary_whose_parts_do_not_fit_is_refused(changed: dict[str, list[object]], said: str) -> None:
    def files(**arrays: list[object]) -> GGUFFiles:
        made = GGUFFiles.__new__(GGUFFiles)
        made.files, made.arrays = [Path("m.gguf")], {f"tokenizer.ggml.{name}": value for name, value in arrays.items()}
        return made

    whole: dict[str, list[object]] = {"tokens": ["a", "b", "ab"], "token_type": [1, 1, 1], "scores": [0.0, 0.0, -1.0], "merges": ["a b"]}
    assert checked_arrays(files(**whole)).tokens == ["a", "b", "ab"]
    with pytest.raises(UserError) as refused:
        checked_arrays(files(**whole | changed))
    assert "m.gguf has a damaged vocabulary" in str(refused.value)
    assert said in str(refused.value)
