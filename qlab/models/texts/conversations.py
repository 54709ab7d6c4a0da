"""Records of a JSON-lines file as documents: conversations, prompts with or without their answers, and plain text.

A conversation is read as the model will meet it: through the chat template of its tokenizer. A tokenizer that has none belongs to a
base model, which will be given plain text; a conversation is then joined as "role: content", since only a made-up markup would be lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from jinja2 import TemplateError

from qlab.models.texts.jsonl import string_of
from qlab.support.errors import UserError

KEYS = ("messages", "text", "prompt")  # what a record is known by
ANSWERS = ("completion", "response")  # what may stand beside a prompt


class Tokenizer(Protocol):
    """The calls that are made of a Hugging Face tokenizer here."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...
    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool = ..., add_generation_prompt: bool = ...
    ) -> Any: ...


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
        UserError: the template refuses the conversation.
    """
    if not document.messages or not has_template(tokenizer):
        return document.text
    messages = [{"role": role, "content": content} for role, content in document.messages]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=messages[-1]["role"] == "user")
    except (TemplateError, TypeError, ValueError) as error:  # templates raise what they like of roles and orders that they do not know
        raise UserError(f"{document.where}: the model's chat template does not take this conversation ({error})") from error
