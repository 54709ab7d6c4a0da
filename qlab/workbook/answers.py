"""What a model answers to two prompts, in English and in French, so that it can be read beside its answers with fewer bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qlab.models.texts.conversations import Document, has_template, rendered
from qlab.models.texts.tokens import beginning, end_of_text
from qlab.support.errors import UserError
from qlab.workbook.language.spoken import gettext, say

QUESTIONS = ("What is the capital of France?", "Quelle est la capitale de l'Italie ?")
BEGINNINGS = ("Return the mean of the elements of the array along", "La fonction renvoie la moyenne des éléments")


def prompts_for(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Questions where the tokenizer has a chat template; else beginnings of a text, which a base model continues."""
    return QUESTIONS if has_template(tokenizer) else BEGINNINGS


@torch.inference_mode()
def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: int, bits: int | None = None) -> list[dict[str, Any]]:
    """The greedy answer of at most `tokens` tokens to each prompt: {bits, prompt, answer}; `bits` is None for the original.

    An answer is shorter where the model ends it, and where its context is full.

    Raises:
        UserError: `tokens` is less than one, or the model's context has no room for a prompt and one token.
    """
    if tokens < 1:
        raise UserError(f"answer_tokens is {tokens}: an answer has at least one token")
    found = []
    for prompt in prompts_for(tokenizer):
        text = rendered(Document("prompt", prompt, (("user", prompt),)), tokenizer)
        start = [] if has_template(tokenizer) else beginning(tokenizer)  # a template brings its own beginning
        ids = torch.tensor([[*start, *tokenizer.encode(text, add_special_tokens=False)]], device=model.device)
        room = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2048
        if room <= ids.shape[1]:
            raise UserError(f"the model's context holds {room} tokens, and the prompt {prompt!r} takes {ids.shape[1]}")
        ends = {} if model.generation_config.eos_token_id is not None else {"eos_token_id": end_of_text(tokenizer) or None}
        out = model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=min(tokens, room - ids.shape[1]),
            do_sample=False,
            pad_token_id=0,
            **ends,
        )
        answer = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        found.append({"bits": bits, "prompt": prompt, "answer": str(answer).strip()})
    return found


def side_by_side(chat: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Answers as `answers` gives them, as a table: a row a prompt, the original's answer first, then a column for each width."""
    rows: dict[str, dict[str, str]] = {}
    for entry in chat:
        column = gettext("original") if entry["bits"] is None else say("{bits} bits", bits=entry["bits"])
        row = rows.setdefault(entry["prompt"], {gettext("prompt"): entry["prompt"]})
        row[column] = entry["answer"] or gettext("(the model ends its answer at once)")
    return pd.DataFrame(list(rows.values()))
