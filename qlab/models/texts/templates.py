"""Chat templates: programs that came with a model, rendered as transformers renders them.

transformers runs them in Jinja's immutable sandbox, which keeps them from files and from Python but bounds neither memory nor time; so it
happens in a process of its own (qlab.support.processes.confined).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qlab.support.processes.confined import Exceeded, confined

SECONDS = 5  # of computing for a chat, which takes a thousandth
LONGEST = 1 << 25  # characters of a rendered chat


class TemplateFailure(Exception):
    """What a template did instead of rendering the chat, as the rest of a sentence that begins with its name."""


def render(template: str, messages: Sequence[Mapping[str, str]], answer: bool, special: Mapping[str, str]) -> str:
    """What transformers' apply_chat_template makes of `messages` by `template`, byte for byte.

    Args:
        template: in Jinja's language.
        messages: each with "role" and "content".
        answer: whether the beginning of the assistant's turn follows (add_generation_prompt).
        special: the tokenizer's special tokens, which the template may name.

    Raises:
        TemplateFailure: it refuses the messages, takes too much memory or time, or makes too much text.
    """
    try:
        text, refused = confined(rendered_here, template, messages, answer, special, seconds=SECONDS)
    except Exceeded as error:
        raise TemplateFailure(f"{error} with this conversation") from error
    if refused:
        raise TemplateFailure(f"does not take this conversation ({' '.join(refused.split())[:200]})")
    return text


def rendered_here(template: str, messages: Sequence[Mapping[str, str]], answer: bool, special: Mapping[str, str]) -> tuple[str, str]:
    """The rendered chat, or what was said instead, in this very process."""
    from transformers.utils.chat_template_utils import render_jinja_template

    chats, names = [[dict(message) for message in messages]], dict[str, Any](special)
    try:
        found: Any = render_jinja_template(chats, None, None, template, add_generation_prompt=answer, **names)
        text: str = found[0][0]  # the first chat; what it returns beside the chats is for training
        text.encode("utf-8")
    except MemoryError:
        raise
    except Exception as error:  # templates raise what they like of roles and orders that they do not know
        return "", str(error)[:1000] or type(error).__name__
    return (text, "") if len(text) <= LONGEST else ("", f"it made {len(text):,} characters, and at most {LONGEST:,} are expected")
