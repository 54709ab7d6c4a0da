"""From the vocabulary in a GGUF file back to a tokenizer that cuts text as llama.cpp does: the inverse of tokenizer.py."""

from __future__ import annotations

from typing import Annotated, Any

from gguf import TokenType
from pydantic import BaseModel, FiniteFloat, Strict, ValidationError, model_validator
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from qlab.formats.gguf.reading import GGUFFiles
from qlab.formats.gguf.tokens.splitting import BEGINS, BY_NAME, splitter
from qlab.support.errors import UserError


def read_tokenizer(files: GGUFFiles) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF model whose header was read with its arrays; its chat template and special tokens come along.

    Raises:
        UserError: a kind of tokenizer that qlab does not read, or none.
    """
    settings = files.settings
    kind = settings.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama") or "tokenizer.ggml.tokens" not in files.arrays:
        raise UserError(
            f"{files.files[0].name} has a tokenizer of the kind {kind!r}; qlab reads byte-level BPE (gpt2) and SentencePiece BPE (llama): "
            "put the model's tokenizer.json beside it"
        )
    arrays = checked_arrays(files)
    tokens, kinds = arrays.tokens, arrays.token_type or [TokenType.NORMAL] * len(arrays.tokens)
    tokenizer = byte_level(files, tokens, kinds) if kind == "gpt2" else sentencepiece(files, tokens, kinds)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in texts(tokens, kinds, TokenType.USER_DEFINED)])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in texts(tokens, kinds, TokenType.CONTROL)])
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    special = {}
    for name, ours in names.items():
        index = settings.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(index, int) and 0 <= index < len(tokens):
            special[ours] = tokens[index]
    begins = bool(settings.get("tokenizer.ggml.add_bos_token", kind == "llama" or settings.get("tokenizer.ggml.pre") in BEGINS))
    ends = bool(settings.get("tokenizer.ggml.add_eos_token", False))
    frame(tokenizer, special.get("bos_token") if begins else None, special.get("eos_token") if ends else None)
    template = settings.get("tokenizer.chat_template")
    if not isinstance(template, str | None):
        raise UserError(f"{files.files[0].name} has a chat template that is no text: convert the model anew")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, chat_template=template,
        add_bos_token=begins, add_eos_token=ends, **special,
    )  # fmt: skip


class Arrays(BaseModel):
    """A vocabulary as the header holds it."""

    tokens: list[Annotated[str, Strict()]]
    token_type: list[TokenType] | None = None
    merges: list[Annotated[str, Strict()]] | None = None
    scores: list[FiniteFloat] | None = None

    @model_validator(mode="after")
    def as_many(self) -> Arrays:
        if any(given is not None and len(given) != len(self.tokens) for given in (self.token_type, self.scores)):
            raise ValueError("token_type and scores are not as many as tokens")
        return self


def checked_arrays(files: GGUFFiles) -> Arrays:
    """The vocabulary in a header that was read with its arrays.

    Raises:
        UserError: it is damaged.
    """
    found = {name: files.arrays[f"tokenizer.ggml.{name}"] for name in Arrays.model_fields if f"tokenizer.ggml.{name}" in files.arrays}
    try:
        return Arrays.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:40] or "tokenizer"
        raise UserError(
            f"{files.files[0].name} has a damaged vocabulary ({where}: {first['msg'][:100]}): fetch it again, or convert the model anew"
        ) from error


def texts(tokens: list[str], kinds: list[TokenType], wanted: TokenType) -> list[str]:
    """The texts of all tokens of a type."""
    return [text for text, kind in zip(tokens, kinds) if kind == wanted]


def numbers(tokens: list[str], kinds: list[TokenType]) -> dict[str, int]:
    """Tokens by their texts, without those that only fill the embedding."""
    return {text: index for index, (text, kind) in enumerate(zip(tokens, kinds)) if kind is not TokenType.UNUSED or text != f"[PAD{index}]"}


def byte_level(files: GGUFFiles, tokens: list[str], kinds: list[TokenType]) -> Tokenizer:
    """Byte-level BPE, split as the header's `pre` names it.

    Raises:
        UserError: a name that qlab does not know, or no merges.
    """
    name = str(files.settings.get("tokenizer.ggml.pre", "default"))
    if name not in BY_NAME:
        raise UserError(
            f"the GGUF file's tokenizer splits text as {name!r}, which qlab does not know; it knows {', '.join(sorted(BY_NAME))}: "
            "put the model's tokenizer.json beside it"
        )
    merges = files.arrays.get("tokenizer.ggml.merges")
    if merges is None:
        raise UserError(f"{files.files[0].name} has a byte-level tokenizer without merges: convert the model anew")
    pairs = [split_merge(merge) for merge in merges]
    tokenizer = Tokenizer(models.BPE(numbers(tokens, kinds), pairs, ignore_merges=name in BEGINS))
    tokenizer.pre_tokenizer = splitter(name)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def split_merge(merge: str) -> tuple[str, str]:
    """The two tokens of a merge: at its blank, which is no byte of either."""
    left, _, right = merge.partition(" ")
    return left, right


def sentencepiece(files: GGUFFiles, tokens: list[str], kinds: list[TokenType]) -> Tokenizer:
    """SentencePiece's BPE: of two neighbours whose union is a token, those of the highest score are merged first; bytes for what is left.

    Raises:
        UserError: tokens without scores.
    """
    scores = files.arrays.get("tokenizer.ggml.scores")
    if scores is None:
        raise UserError(f"{files.files[0].name} has a SentencePiece tokenizer without scores: convert the model anew")
    vocabulary = numbers(tokens, kinds)
    unknown = next(iter(texts(tokens, kinds, TokenType.UNKNOWN)), None)
    mergeable = {text for text, kind in zip(tokens, kinds) if kind is TokenType.NORMAL}
    ranked = sorted((index for index, kind in enumerate(kinds) if kind is TokenType.NORMAL), key=lambda index: (-scores[index], index))
    merges = [
        (tokens[index][:cut], tokens[index][cut:])
        for index in ranked
        for cut in range(1, len(tokens[index]))
        if tokens[index][:cut] in mergeable and tokens[index][cut:] in mergeable
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = bool(files.settings.get("tokenizer.ggml.add_space_prefix", True))
    steps: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    stripped: list[Any] = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *stripped])
    return tokenizer


def frame(tokenizer: Tokenizer, first: str | None, last: str | None) -> None:
    """Put tokens before and after a text that is cut with its special tokens."""
    around = [text for text in (first, last) if text is not None]
    if around:
        single = [text for text in (first, "$A", last) if text is not None]
        pair = [text for text in (first, "$A", last, first and f"{first}:1", "$B:1", last and f"{last}:1") if text is not None]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[(text, tokenizer.token_to_id(text)) for text in dict.fromkeys(around)]
        )
