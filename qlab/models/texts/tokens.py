"""What a tokenizer puts around a text, and whether the model has a row of its embedding for every token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlab.models.texts.conversations import Tokenizer
from qlab.support.errors import UserError


def beginning(tokenizer: Tokenizer) -> list[int]:
    """The tokens (BOS) that the tokenizer itself puts in front of a text; [] where it puts none.

    What a model was trained with is its tokenizer's business: Llama 3 and Gemma begin every text with BOS, and Gemma predicts nothing
    sensible without; Qwen and SmolLM have a BOS and never use it so.
    """
    bare, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a", add_special_tokens=True)
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start]
    return []


def end_of_text(tokenizer: Tokenizer) -> list[int]:
    """The token that parts one document from the next, where the tokenizer has an end of text."""
    token = getattr(tokenizer, "eos_token_id", None)
    return [token] if isinstance(token, int) else []


def shown(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    """Tokens by their names."""
    convert = getattr(tokenizer, "convert_ids_to_tokens", None)
    return " ".join(convert(list(tokens)) if convert else map(str, tokens))


def embedding_rows(config: Mapping[str, Any]) -> int | None:
    """The number of tokens that a model with this configuration has embeddings for, where it says."""
    rows = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    return rows if isinstance(rows, int) else None


def check_tokens(tokenizer: Tokenizer, tokens: Sequence[int], rows: int | None, name: str) -> None:
    """See that the model has embeddings for the `tokens` of the text `name`, and for the tokenizer's own beginning and end of text.

    Other tokens that the tokenizer has too many are no harm: Gemma 3 has one for images that its text models lack.

    Raises:
        UserError: it has not.
    """
    if rows is None:
        return
    marks = {kind: getattr(tokenizer, f"{kind}_token_id", None) for kind in ("bos", "eos")}
    beyond = {f"its {kind} token": token for kind, token in marks.items() if isinstance(token, int) and token >= rows}
    if not beyond and tokens and max(tokens) >= rows:
        beyond = {f"one in {name}": max(tokens)}
    for where, token in beyond.items():
        raise UserError(
            f"the tokenizer has tokens that the model has no embedding for: {where} is {shown(tokenizer, [token])!r}, number {token}, "
            f"and the embedding has {rows} rows. Give the tokenizer that belongs to the model, or resize the model's embedding for this one"
        )
