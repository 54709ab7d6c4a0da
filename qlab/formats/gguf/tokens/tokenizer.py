"""The tokenizer inside a GGUF file: byte-level BPE ("gpt2" to llama.cpp) or SentencePiece ("llama")."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from gguf import TokenType

from qlab.formats.gguf.tokens.tokenizer_file import read_description
from qlab.formats.gguf.tokens.tokenizer_rules import check_byte_level, check_marked, check_sentencepiece
from qlab.support.errors import UserError
from qlab.support.reading import read_json

ADDED_SCORE = -1000.0  # of tokens that no merge makes


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by number: texts, llama.cpp's types and, for SentencePiece, scores; `pre` names the pre-tokenizer."""

    model: str
    pre: str
    tokens: list[str]
    kinds: list[TokenType]
    scores: list[float] | None = None
    space_first: bool | None = None


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, size: int) -> None:
    """Tokens, merges or scores, special tokens and chat template of the tokenizer in `folder`, for `size` embeddings.

    Raises:
        UserError: a kind of tokenizer that llama.cpp or this writer does not know.
    """
    vocabulary = read_vocabulary(folder, size)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.space_first is not None:
        writer.add_add_space_prefix(vocabulary.space_first)
    special = special_tokens(folder, vocabulary.scores is None, size)
    special.add_to_gguf(writer, quiet=True)
    if special.add_special_token.get("bos") is None and (folder / "tokenizer.json").exists():
        writer.add_add_bos_token(False)  # llama.cpp would add one by default; this tokenizer says nothing of it


def special_tokens(folder: Path, merges: bool, size: int) -> gguf.SpecialVocab:
    """Special tokens, chat template and, if asked for, merges, as gguf-py reads them.

    Raises:
        UserError: it cannot.
    """
    try:
        return gguf.SpecialVocab(folder, load_merges=merges, n_vocab=size)
    except Exception as error:  # it raises what it likes of what it does not foresee
        said = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"{folder.name}: gguf-py cannot read its special tokens or its chat template ({said}); copy the original's tokenizer again"
        ) from error


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """The vocabulary of the tokenizer in `folder`, filled up to `size` tokens.

    Raises:
        UserError: see add_tokenizer.
    """
    file = folder / "tokenizer.json"
    description = read_description(file) if file.exists() else {}
    special_tokens(folder, bool(description), size)
    model = description.get("model", {})
    if model.get("type") == "BPE" and "ByteLevel" in json.dumps(description.get("pre_tokenizer")):
        pre = check_byte_level(description)
        tokens, kinds = plain_tokens(model["vocab"], added_tokens(folder, description), size)
        return Vocabulary("gpt2", pre, tokens, kinds)
    if model.get("type") == "BPE" and model.get("byte_fallback"):
        check_marked(description)
        tokens, kinds = plain_tokens(model["vocab"], added_tokens(folder, description), size, model.get("unk_token"))
        return Vocabulary("llama", "default", tokens, kinds, merge_scores(model, tokens), space_first(description))
    if not description and (folder / "tokenizer.model").exists():
        return sentencepiece_vocabulary(folder, size)
    raise UserError(
        "the GGUF writer takes byte-level BPE and SentencePiece BPE tokenizers (tokenizer.json or tokenizer.model); "
        f"this model has {model.get('type') or 'no tokenizer file'}"
    )


def added_tokens(folder: Path, description: dict[str, Any]) -> dict[int, tuple[str, bool]]:
    """Tokens added to the model's own, by number: text, and whether special."""
    if description:
        return {token["id"]: (token["content"], token["special"]) for token in description.get("added_tokens", [])}
    found: dict[int, tuple[str, bool]] = {}
    if (file := folder / "added_tokens.json").exists():
        found |= {index: (text, False) for text, index in read_json(file).items()}
    if (file := folder / "tokenizer_config.json").exists():
        decoder = read_json(file).get("added_tokens_decoder", {})
        found |= {int(index): (token["content"], token["special"]) for index, token in decoder.items()}
    return found


def plain_tokens(
    vocabulary: dict[str, int], added: dict[int, tuple[str, bool]], size: int, unknown: str | None = None
) -> tuple[list[str], list[TokenType]]:
    """Texts and types by number; embeddings without a token get a placeholder."""
    by_id = {index: token for token, index in vocabulary.items()}
    tokens = [f"[PAD{index}]" for index in range(size)]
    kinds = [TokenType.UNUSED] * size
    for index in range(size):
        if index in by_id:
            tokens[index], kinds[index] = by_id[index], TokenType.NORMAL
            if unknown is not None and re.fullmatch(r"<0x[0-9A-F]{2}>", by_id[index]):
                kinds[index] = TokenType.BYTE
        if index in added:
            tokens[index] = added[index][0]
            kinds[index] = TokenType.CONTROL if added[index][1] else TokenType.USER_DEFINED
        if unknown is not None and tokens[index] == unknown:
            kinds[index] = TokenType.UNKNOWN
    return tokens, kinds


def merge_scores(model: dict[str, Any], tokens: list[str]) -> list[float]:
    """SentencePiece's scores from BPE merges: the earlier the merge that makes a token, the higher its score.

    llama.cpp merges by the score of the result; merges were written out from such scores, so their order tells all.
    """
    rank: dict[str, int] = {}
    for merge in model["merges"]:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        rank.setdefault(left + right, len(rank))
    return [float(-rank[token]) if token in rank else ADDED_SCORE - len(rank) for token in tokens]


def space_first(description: dict[str, Any]) -> bool:
    """Whether a space is put before the text."""
    text = json.dumps([description.get("normalizer"), description.get("pre_tokenizer")])
    if '"Metaspace"' in text:
        return '"never"' not in text
    return '"Prepend"' in text


def sentencepiece_vocabulary(folder: Path, size: int) -> Vocabulary:
    """The vocabulary of tokenizer.model, read with the sentencepiece package.

    Raises:
        UserError: the package is missing, or llama.cpp would cut text otherwise (see tokenizer_rules.check_sentencepiece).
    """
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise UserError("tokenizer.model needs the sentencepiece package: pip install sentencepiece, or add a tokenizer.json") from error
    space_first = check_sentencepiece((folder / "tokenizer.model").read_bytes())
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    count = min(pieces.vocab_size(), size)
    tokens = [pieces.id_to_piece(i) for i in range(count)] + [f"[PAD{i}]" for i in range(count, size)]
    scores = [pieces.get_score(i) for i in range(count)] + [ADDED_SCORE] * (size - count)
    kinds = [
        TokenType.UNKNOWN if pieces.is_unknown(i)
        else TokenType.CONTROL if pieces.is_control(i)
        else TokenType.BYTE if pieces.is_byte(i)
        else TokenType.UNUSED if pieces.is_unused(i)
        else TokenType.NORMAL
        for i in range(count)
    ] + [TokenType.UNUSED] * (size - count)  # fmt: skip
    for index, (text, special) in added_tokens(folder, {}).items():
        if index < size and kinds[index] is not TokenType.UNKNOWN:
            tokens[index], scores[index] = text, ADDED_SCORE
            kinds[index] = TokenType.CONTROL if special else TokenType.USER_DEFINED
    return Vocabulary("llama", "default", tokens, kinds, scores, space_first)
