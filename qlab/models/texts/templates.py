"""Chat templates rendered in a process of their own: they are programs that came with a model, and may take any memory and time.

transformers runs them in Jinja's immutable sandbox, which keeps them from files and from Python; the operating system's limits on the
process keep them from the rest, within one step of the interpreter too. On macOS, which has no limit on memory, there is that on time.
"""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from functools import cache

import psutil

from qlab.support.process import Died, Isolated, Overdue

SECONDS = 5  # of computing for a chat, which takes a thousandth
WAITING, STARTING = 60.0, 300.0  # seconds by the clock, on a busy machine: for a chat, and for the process to be there
MEMORY = 1 << 30  # bytes beyond what the process begins with
LONGEST = 1 << 25  # characters of a rendered chat

Request = tuple[str, Sequence[Mapping[str, str]], bool, Mapping[str, str]]
"""A template, the messages, whether the assistant's turn begins behind them, and the special tokens by their names."""
Answer = tuple[str, str]
"""TEXT and the rendered chat; REFUSED and what the template said; or TOO_MUCH, where it ran out of memory."""
TEXT, REFUSED, TOO_MUCH = "text", "refused", "too much"


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
        RuntimeError: the process that renders does not start.
    """
    try:
        kind, text = _asked((template, messages, answer, special))
    except Overdue as error:
        raise TemplateFailure(f"was not done with this conversation in {WAITING:g} seconds") from error
    except Died as error:
        if error.code == -signal.SIGXCPU:
            raise TemplateFailure(f"was not done with this conversation in {SECONDS} seconds of computing") from error
        raise TemplateFailure(f"ended the process that renders it (exit code {error.code})") from error
    if kind == TOO_MUCH:
        raise TemplateFailure(f"asked for more than {MEMORY >> 30} GiB of memory for this conversation")
    if kind == REFUSED:
        raise TemplateFailure(f"does not take this conversation ({' '.join(text.split())[:200]})")
    return text


def _asked(request: Request) -> Answer:
    """The answer of the process that renders; one that may be the worse for it is replaced."""
    process = _worker()
    try:
        answer = process.ask(request, WAITING)
    except BaseException:
        _end_worker()
        raise
    if answer[0] == TOO_MUCH:
        _end_worker()
    return answer


@cache
def _worker() -> Isolated[Answer]:
    """The process that renders, for as long as this one lives."""
    process = Isolated(rendering, name="rendering chats")
    try:
        process.next(STARTING)
    except BaseException:
        process.close()
        raise
    return process


def _end_worker() -> None:
    _worker().close()
    _worker.cache_clear()


def rendering() -> Generator[Answer, Request, None]:
    """Answers to requests, in a process that from here on has little memory, and little time for each."""
    from transformers.utils import chat_template_utils  # noqa: F401 - before there is a limit

    limit_memory(MEMORY)
    answer = (TEXT, "")  # it is ready
    while True:
        request = yield answer
        limit_seconds(SECONDS)
        try:
            answer = _rendered(request)
        except MemoryError:
            answer = (TOO_MUCH, "")


def _rendered(request: Request) -> Answer:
    from transformers.utils.chat_template_utils import render_jinja_template

    template, messages, answer, special = request
    try:
        (text,), _ = render_jinja_template(
            conversations=[messages], tools=None, documents=None, chat_template=template, add_generation_prompt=answer, **special
        )
        text.encode("utf-8")
    except MemoryError:
        raise
    except Exception as error:  # templates raise what they like of roles and orders that they do not know
        return REFUSED, str(error)[:1000]
    return (TEXT, text) if len(text) <= LONGEST else (REFUSED, f"it made {len(text):,} characters, and at most {LONGEST:,} are expected")


def limit_memory(more: int) -> None:
    """Let this process have `more` bytes of addresses beyond those that it has now, where the system has such a limit; no core dumps."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = psutil.Process().memory_info().vms + more
    with suppress(ValueError, OSError):  # macOS
        resource.setrlimit(resource.RLIMIT_AS, (wanted if soft == resource.RLIM_INFINITY else min(soft, wanted), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_seconds(more: int) -> None:
    """Have the system end this process (SIGXCPU) when it has computed `more` seconds from now on."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    wanted = int(time.process_time()) + 1 + more
    resource.setrlimit(resource.RLIMIT_CPU, (wanted if hard == resource.RLIM_INFINITY else min(hard, wanted), hard))
