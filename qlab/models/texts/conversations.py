"""Records of a JSON-lines file as documents: conversations, prompts with or without their answers, and plain text.

A conversation is read as the model will meet it: through the chat template of its tokenizer. A tokenizer that has none belongs to a
base model, which will be given plain text; a conversation is then joined as "role: content", since only a made-up markup would be lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from qlab.models.texts.jsonl import string_of
from qlab.models.texts.templates import TemplateFailure, render
from qlab.support.errors import UserError

KEYS = ("messages", "text", "prompt")  # what a record is known by
ANSWERS = ("completion", "response")  # what may stand beside a prompt


class Tokenizer(Protocol):
    """The calls that are made of a Hugging Face tokenizer here."""

    @property
    def special_tokens_map(self) -> dict[str, str]: ...
    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...
    def get_chat_template(self) -> str: ...


@dataclass(frozen=True)
class Document:
    """A document at `where` in its file: its plain `text`, and its `messages` where it is a conversation or a prompt."""

    where: str
    text: str
    messages: tuple[tuple[str, str], ...] = ()  # (role, content)


def has_template(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer brings a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def document_of(record: dict[str, Any], where: str) -> Document:
    """The document that a record of a JSON-lines file holds.

    Raises:
        UserError: it has none of KEYS, or not text where text belongs.
    """
    if "messages" in record:
        messages = messages_of(record["messages"], where)
        return Document(where, "\n\n".join(f"{role}: {content}" for role, content in messages), messages)
    if "text" in record:
        return Document(where, string_of(record, "text", where))
    if "prompt" not in record:
        found = ", ".join(repr(key[:40]) for key in list(record)[:6]) or "nothing"
        raise UserError(f"{where}: expected 'messages', 'text' or 'prompt' (with 'completion' or 'response'), found {found}")
    prompt = string_of(record, "prompt", where)
    answers = [string_of(record, key, where) for key in ANSWERS if key in record]
    if len(answers) > 1:
        raise UserError(f"{where}: both 'completion' and 'response' stand beside the prompt; keep one")
    return Document(where, "\n".join([prompt, *answers]), tuple(zip(("user", "assistant"), (prompt, *answers))))


def messages_of(value: Any, where: str) -> tuple[tuple[str, str], ...]:
    """(role, content) of each message.

    Raises:
        UserError: it is no list of objects with text under both.
    """
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise UserError(f"{where}: expected under 'messages' a list of objects with 'role' and 'content'")
    return tuple((string_of(message, "role", where), string_of(message, "content", where)) for message in value)


def rendered(document: Document, tokenizer: Tokenizer) -> str:
    """The text that the model is to read, special tokens included: by the chat template where there are messages and a template.

    Where the user speaks last, the beginning of the assistant's turn follows, as it does when the model is asked to answer.

    Raises:
        UserError: the template refuses the conversation, or takes too much memory or time for it.
    """
    if not document.messages or not has_template(tokenizer):
        return document.text
    messages = [{"role": role, "content": content} for role, content in document.messages]
    try:
        return render(template_of(tokenizer), messages, messages[-1]["role"] == "user", tokenizer.special_tokens_map)
    except TemplateFailure as error:
        whose = getattr(tokenizer, "name_or_path", "") or "the model"
        raise UserError(
            f"{document.where}: the chat template of {whose} {error}; expected the conversation as text: mend the template "
            "(chat_template.jinja, or chat_template in tokenizer_config.json) or the conversation"
        ) from error


def template_of(tokenizer: Tokenizer) -> str:
    """The tokenizer's chat template, of several the one for conversations without tools.

    Raises:
        TemplateFailure: there is none for these, or it is no text.
    """
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise TemplateFailure(f"cannot be told from others ({str(error)[:120]})") from error
    if not isinstance(template, str):
        raise TemplateFailure(f"is no text, but of type {type(template).__name__}")
    return template
