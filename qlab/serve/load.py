"""A server under load: many prompts at rising concurrency, timed as its users feel it.

TTFT is from sending to the first token; TPOT is (latency − TTFT) / (tokens − 1); ITL the time between two arrivals. Tools for
this exist (guidellm, aiperf, vllm bench): each wants more packages than all of qlab, and none can tell a wrong answer, since
none knows what was answered at another load. So this is a page round OpenAI's own client.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
from anyio.from_thread import start_blocking_portal
from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError, AsyncOpenAI, DefaultAsyncHttpxClient

from qlab.serve.answers import BYTES_PER_TOKEN, SPARE, Measured, Part, Refused
from qlab.support.errors import UserError
from qlab.support.progress import counter

LATE, WRONG, ELSEWHERE = "not whole in time", "no answer of a known form", "sent elsewhere, where nobody was asked"
GONE = (APIConnectionError.__name__, LATE)
PERCENTILES = (50, 95, 99)
NEAR_TIE = 0.3  # nats; in 500 answers of llama.cpp at 1 and at 16 at a time the largest parting was 0.16
SATURATED = 1.1  # a doubling of concurrency that brings less than this factor in throughput has saturated the server


# Answers of one length, as in other benchmarks; and no level profits from prompts that an earlier one has read: llama.cpp is told
# so, and vLLM keeps what it has read apart by `cache_salt`. Each ignores the other's words.
SETTINGS = {"ignore_eos": True, "cache_prompt": False, "return_tokens_as_token_ids": True}


@dataclass
class Answer:
    """One request: text, tokens, seconds to the first token and in all, seconds between arrivals; or the error."""

    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    first: float = 0.0
    latency: float = 0.0
    gaps: list[float] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True)
class Level:
    """All requests at one concurrency: seconds (TTFT, TPOT, ITL, latency by percentile), throughputs a second, and what went wrong.

    `changed` counts answers that differ from those at the first level. Greedy answers must not depend on the load, but for near
    ties, which another batch size may break the other way; `wrong` counts those that part where it was none.
    """

    concurrency: int
    requests: int
    seconds: float
    ttft: dict[str, float]
    tpot: dict[str, float]
    itl: dict[str, float]
    latency: dict[str, float]
    request_throughput: float
    output_throughput: float
    total_throughput: float
    errors: dict[str, int]
    changed: int
    wrong: int


def run_load(
    url: str, model: str, prompts: Sequence[str], levels: Sequence[int], tokens: int, key: str | None = None, timeout: float = 120,
    fewest: int | None = None,
) -> list[Level]:  # fmt: skip
    """Send all prompts at each concurrency of `levels`, for `tokens` greedy tokens each, to the OpenAI interface at `url`.

    `fewest`: at a level only so many of them, or as many as are sent at a time if that is more; few users need not wait for the prompts of
    many.

    An answer that is not whole after `timeout` seconds, or longer than one of so many tokens can be, is lost. Where more than twice as many
    as are sent at a time find nobody, one after the other, the rest is not sent: a silent server takes three times `timeout`. After a level
    at which all were lost no other is tried.

    Raises:
        UserError: no prompts, a level below one, or a URL of no server.
    """
    check_url(url)
    if not prompts or min(levels, default=0) < 1:
        raise UserError("a load needs prompts, and levels of one request at a time or more")
    done: list[Level] = []
    first: list[Answer] = []
    # An event loop in a thread of its own, since a notebook's kernel has one running already; Ctrl-C cancels what is under way there.
    sent = [prompts if fewest is None else prompts[: max(level, fewest)] for level in levels]
    with counter(sum(map(len, sent)), 0, "requests") as count, start_blocking_portal() as portal:
        for level, texts in zip(levels, sent):
            started = time.perf_counter()
            tick = partial(count, f"{level} at a time", {})
            answers = portal.call(_level, url, model, texts, level, tokens, key, timeout, tick)
            first = first or answers
            done.append(summary(level, answers, first, time.perf_counter() - started))
            if all(answer.error for answer in answers):
                break
    return done


def check_url(url: str) -> None:
    """See that `url` can be one of a server.

    Raises:
        UserError: it cannot.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not parts.query and not parts.fragment
        httpx2.URL(url)  # its own rules for names of hosts
    except (ValueError, httpx2.InvalidURL):
        good = False
    if not good or not url.isprintable() or " " in url:
        raise UserError(f"no server at {url[:200]!r}: expected an address such as http://127.0.0.1:8000")


async def _level(
    url: str, model: str, prompts: Sequence[str], level: int, tokens: int, key: str | None, timeout: float, tick: Any
) -> list[Answer]:
    answers = [Answer(error="not sent: the server is gone") for _ in prompts]
    waiting, lost = iter(range(len(prompts))), 0
    users = min(level, len(prompts))
    pool = httpx2.Limits(max_connections=users)
    transport = Measured(SPARE + BYTES_PER_TOKEN * tokens, limits=pool)
    async with (
        # The server itself: no proxy of the environment, no other one that it names.
        DefaultAsyncHttpxClient(transport=transport, timeout=timeout, trust_env=False, follow_redirects=False) as http,
        AsyncOpenAI(base_url=f"{url}/v1", api_key=key or "none", max_retries=0, timeout=timeout, http_client=http) as client,
    ):

        async def user() -> None:
            nonlocal lost
            for index in waiting:
                answers[index] = await _ask(client, model, prompts[index], tokens, str(level), timeout)
                lost = lost + 1 if answers[index].error in GONE else 0
                tick()
                if lost > 2 * users:  # nobody is there any more
                    return

        await asyncio.gather(*(user() for _ in range(users)))
    return answers


async def _ask(client: AsyncOpenAI, model: str, prompt: str, tokens: int, salt: str, limit: float) -> Answer:
    """The answer to one prompt. Whatever goes wrong is this answer's error, and costs no other its figures."""
    try:
        async with asyncio.timeout(limit):
            return await _answer(client, model, prompt, tokens, salt)
    except (TimeoutError, APITimeoutError):
        return Answer(error=LATE)
    except Refused as error:
        return Answer(error=str(error))
    except APIStatusError as error:
        return Answer(error=ELSEWHERE if error.response.is_redirect else type(error).__name__)
    except APIError as error:
        return Answer(error=WRONG if type(error) is APIError else type(error).__name__)
    except httpx2.HTTPError:  # in the middle of a stream
        return Answer(error=APIConnectionError.__name__)
    except Exception:  # OpenAI's client raises what its parts do, of whatever a server sends
        return Answer(error=WRONG)


async def _answer(client: AsyncOpenAI, model: str, prompt: str, tokens: int, salt: str) -> Answer:
    answer, started = Answer(), time.perf_counter()
    last = started
    stream = await client.completions.create(
        model=model, prompt=prompt, max_tokens=tokens, temperature=0, logprobs=1, stream=True, stream_options={"include_usage": True},
        extra_body=SETTINGS | {"cache_salt": salt},
        # llama.cpp closes idle connections just when the next request is on its way
        extra_headers={"Connection": "close", "Accept-Encoding": "identity"},
    )  # fmt: skip
    async with stream:  # else a broken one keeps its connection, and who asks next waits for it
        async for event in stream:
            now, part = time.perf_counter(), Part.model_validate(event)
            if part.usage:
                answer.tokens, answer.prompt_tokens = part.usage.completion_tokens, part.usage.prompt_tokens
            if part.choices:
                if not answer.first:
                    answer.first = now - started
                else:
                    answer.gaps.append(now - last)
                answer.text += part.choices[0].text
                ids, logprobs = part.choices[0].tokens()
                answer.ids += ids
                answer.logprobs += logprobs
                last = now
    answer.latency = last - started
    if not answer.tokens:
        answer.error = "no tokens"
    elif answer.tokens > tokens:
        answer.error = WRONG
    return answer


def summary(level: int, answers: Sequence[Answer], first: Sequence[Answer], seconds: float) -> Level:
    """Figures of one level; `first` are the answers of the first one."""
    good = [answer for answer in answers if not answer.error]
    output = sum(answer.tokens for answer in good)
    both = [(before, now) for before, now in zip(first, answers) if not before.error and not now.error]
    gaps = [parting(before, now) for before, now in both if before.text != now.text]
    return Level(
        concurrency=level,
        requests=len(answers),
        seconds=seconds,
        ttft=percentiles([answer.first for answer in good]),
        tpot=percentiles([(answer.latency - answer.first) / (answer.tokens - 1) for answer in good if answer.tokens > 1]),
        itl=percentiles([gap for answer in good for gap in answer.gaps]),
        latency=percentiles([answer.latency for answer in good]),
        request_throughput=len(good) / seconds,
        output_throughput=output / seconds,
        total_throughput=(output + sum(answer.prompt_tokens for answer in good)) / seconds,
        errors=dict(Counter(answer.error for answer in answers if answer.error)),
        changed=len(gaps),
        wrong=sum(gap > NEAR_TIE for gap in gaps),
    )


def parting(first: Answer, second: Answer) -> float:
    """By how much the log-probabilities differ of the two tokens at which greedy answers part, in nats.

    0 where it cannot be told: llama.cpp holds characters back until they are whole, and then gives no ids of the tokens between.
    """
    if len(first.ids) != first.tokens or len(second.ids) != second.tokens:
        return 0.0
    place = next((k for k, pair in enumerate(zip(first.ids, second.ids)) if pair[0] != pair[1]), None)
    return 0.0 if place is None else abs(first.logprobs[place] - second.logprobs[place])


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Mean, p50, p95 and p99; empty where nothing was measured."""
    if not values:
        return {}
    return {"mean": float(np.mean(values))} | {f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES}


def saturation(levels: Sequence[Level]) -> int | None:
    """The concurrency beyond which output throughput grows by less than a tenth for each doubling; None where it still grew."""
    for before, after in pairwise(levels):
        doublings = np.log2(after.concurrency / before.concurrency)
        if after.output_throughput < before.output_throughput * SATURATED**doublings:
            return before.concurrency
    return None
