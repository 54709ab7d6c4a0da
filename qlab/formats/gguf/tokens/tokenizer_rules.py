"""What a tokenizer does to text before it merges, held against what llama.cpp does: the same, told as a remark, or refused.

A GGUF file names one of llama.cpp's built-in ways to prepare text. It cannot describe another one, so a tokenizer with a rule of its own
would be written without it, and llama.cpp would cut text into other tokens than the model learnt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from qlab.formats.gguf.tokens.splitting import BEGINS, BYTES, name_of, steps, way, written_out
from qlab.formats.gguf.tokens.tokenizer_file import read_description
from qlab.support.errors import UserError
from qlab.support.wording import counted

MARK = "▁"  # SentencePiece writes a space so
BPE = 2  # TrainerSpec.ModelType of sentencepiece_model.proto


def refusal(rule: str) -> UserError:
    return UserError(
        f"the tokenizer {rule}, which a GGUF file cannot express: llama.cpp would cut text into other tokens than the model learnt. "
        "Take another format for this model, such as awq-gptq-w4g128"
    )


def check_byte_level(description: dict[str, Any]) -> str:
    """See that a byte-level tokenizer.json prepares text as one of llama.cpp's "gpt2" models does, nothing changed before it is split;
    llama.cpp's name for how it is split.

    NFC is let through: see tokenizer_remarks.

    Raises:
        UserError: a rule that llama.cpp does not have, or for which no name is known here.
    """
    for step in steps(description.get("normalizer"), "normalizers"):
        if step["type"] != "NFC":
            raise refusal(f"changes text before it is cut (normalizer {step['type']})")
    splits = steps(description["pre_tokenizer"], "pretokenizers")
    if any(step.get("add_prefix_space") for step in splits if step["type"] == "ByteLevel"):
        raise refusal("puts a space before every text (add_prefix_space)")
    name = name_of(description["pre_tokenizer"], description["model"].get("ignore_merges", False))
    if name is None:
        raise refusal(rule) if (rule := unknown_rule(splits)) else nameless(splits)
    check_merging(description["model"])
    return name


def unknown_rule(splits: Sequence[dict[str, Any]]) -> str:
    """What these steps of splitting text do that no way of llama.cpp's does; empty where only a pattern is not known here."""
    byte_level = splits[-1]
    if byte_level["type"] != "ByteLevel" or [step["type"] for step in splits].count("ByteLevel") != 1:
        return "does not turn text into bytes as its last step"
    patterns = [step for step in splits if step["type"] == "Split"]
    if byte_level.get("use_regex", True) and patterns:
        return "splits text twice"
    if way({"type": "Sequence", "pretokenizers": splits}) == (BYTES,):
        return "does not split text into words"
    if any(step.get("behavior") != "Isolated" or step.get("invert") for step in patterns):
        return "splits text by what lies between the matches of its pattern, or joins them"
    return ""


def nameless(splits: Sequence[dict[str, Any]]) -> UserError:
    """What to say of steps that may have a name in llama.cpp, but none here."""
    said = " and ".join(step["pattern"].get("Regex", "a text") if step["type"] == "Split" else step["type"] for step in splits[:-1])
    return UserError(
        f"the tokenizer splits text by {written_out(said)[:120]}; a GGUF file names such a rule, and qlab knows no name of llama.cpp's for "
        "this one: take another format for this model, such as awq-gptq-w4g128, or llama.cpp's own converter"
    )


def check_marked(description: dict[str, Any]) -> None:
    """See that a tokenizer.json with ▁ for spaces prepares text as llama.cpp's "llama" models do: spaces marked, one put first or not.

    Raises:
        UserError: a rule that llama.cpp does not have.
    """
    marked = False
    for step in steps(description.get("normalizer"), "normalizers"):
        replaces = step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == MARK
        if not replaces and (step["type"] != "Prepend" or step["prepend"] != MARK):
            raise refusal(f"changes text before it is cut (normalizer {step['type']})")
        marked |= replaces
    for step in steps(description.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Metaspace" and step.get("replacement") == MARK:
            if step.get("split", True) and any(MARK in token[1:] for token in description["model"]["vocab"]):
                raise refusal("splits text at spaces, though it has tokens with a space inside")
        elif not (marked and step["type"] == "Split" and step["pattern"] == {"String": " "}):  # no spaces are left for such a split
            raise refusal(f"splits text before it merges (pre-tokenizer {step['type']})")
    check_merging(description["model"])


def check_merging(model: dict[str, Any]) -> None:
    """See that merging has no rule beside the merges; raises UserError otherwise."""
    for rule in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(rule):
            raise refusal(f"merges with {rule} {model[rule]!r}")


def tokenizer_remarks(folder: Path) -> str:
    """Where llama.cpp cuts some texts otherwise than the tokenizer in `folder`; empty where it does not. Such texts are rare."""
    if not (file := folder / "tokenizer.json").exists():
        return ""
    description = read_description(file)
    said = []
    if any(step["type"] == "NFC" for step in steps(description.get("normalizer"), "normalizers")):
        said.append("composes accented letters first (Unicode's NFC), llama.cpp does not: text with decomposed letters is cut otherwise")
    if greedy := [token["content"] for token in description.get("added_tokens", []) if token.get("lstrip") or token.get("rstrip")]:
        said.append(f"takes the spaces beside {', '.join(greedy[:3])} into the token, llama.cpp leaves them in the text")
    if words := whole_words(description):
        said.append(words)
    return f"this tokenizer {'; it '.join(said)}" if said else ""


def whole_words(description: dict[str, Any]) -> str:
    """Where either this tokenizer or llama.cpp takes a word that is a token whole, whatever its merges, and the other merges it, and
    merging would not make it: how many such words there are."""
    model = description["model"]
    if model.get("type") != "BPE" or "ByteLevel" not in json.dumps(description.get("pre_tokenizer")):
        return ""
    whole = bool(model.get("ignore_merges"))
    if whole == (name_of(description["pre_tokenizer"], whole) in BEGINS):
        return ""
    alone: dict[str, Any] = {"added_tokens": [], "normalizer": None, "pre_tokenizer": None, "post_processor": None}
    merging = Tokenizer.from_str(json.dumps(description | alone | {"model": model | {"ignore_merges": False}}))
    texts = list(model["vocab"])
    special = {token["content"] for token in description.get("added_tokens", [])}
    found = [text for text, cut in zip(texts, merging.encode_batch(texts)) if len(cut.ids) != 1 and text not in special]
    if not found:
        return ""
    ours, theirs = ("takes them whole", "merges them") if whole else ("merges them", "takes them whole")
    return f"has {counted(len(found), 'token')} such as {found[0]!r} that its merges do not make: it {ours}, llama.cpp {theirs}"


def check_sentencepiece(model: bytes) -> bool:
    """See that tokenizer.model works as llama.cpp's "llama" models do; returns whether it puts a space before the text.

    Raises:
        UserError: its kind or a rule is another.
    """
    parts = dict(fields(model))
    trainer, normalizer = dict(fields(parts.get(2, b""))), dict(fields(parts.get(3, b"")))
    if trainer.get(3, 1) != BPE:
        raise refusal("is a SentencePiece model of another kind than BPE (unigram, word or char)")
    if normalizer.get(2):
        raise refusal("changes text before it is cut (SentencePiece normalization, such as nmt_nfkc)")
    if normalizer.get(4, 1):
        raise refusal("drops repeated spaces (remove_extra_whitespaces)")
    if trainer.get(24, 0) or not normalizer.get(5, 1):
        raise refusal("marks spaces at the end of words or not at all")
    return bool(normalizer.get(3, 1))


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a message in protobuf's wire format: whole numbers, or bytes of texts and messages.

    sentencepiece_model.proto numbers them: trainer_spec 2 (model_type 3, treat_whitespace_as_suffix 24), normalizer_spec 3
    (precompiled_charsmap 2, add_dummy_prefix 3, remove_extra_whitespaces 4, escape_whitespaces 5). sentencepiece itself tells none of them.

    Raises:
        UserError: it is cut off or no such message.
    """
    place = 0
    try:
        while place < len(message):
            key, place = varint(message, place)
            kind = key & 7
            if kind == 0:
                value, place = varint(message, place)
                yield key >> 3, value
                continue
            length, place = varint(message, place) if kind == 2 else ({1: 8, 5: 4}[kind], place)
            if place + length > len(message):
                raise IndexError
            yield key >> 3, message[place : place + length]
            place += length
    except (IndexError, KeyError) as error:
        raise UserError("tokenizer.model is damaged: it is no SentencePiece model; download or copy it again") from error


def varint(message: bytes, place: int) -> tuple[int, int]:
    """The whole number at `place`, seven bits a byte, and the place behind it."""
    value = shift = 0
    while True:
        byte = message[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place
