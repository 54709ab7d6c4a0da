"""Greedy tokens of a server with their log-probabilities, as each runtime tells them: what the proof before serving compares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openai import OpenAI


@dataclass(frozen=True)
class Greedy:
    """Token ids in order, and the log-probability of each; None for a token of which the server tells none.

    Raises:
        ValueError: there are none, they are not as many as these, or not of these types.
    """

    ids: list[int]
    logprobs: list[float | None]

    def __post_init__(self) -> None:
        if not self.ids or not all(type(token) is int and token >= 0 for token in self.ids):
            raise ValueError("no tokens, or what is no number of a token")
        if len(self.logprobs) != len(self.ids) or not all(value is None or math.isfinite(value) for value in self.logprobs):
            raise ValueError("not one log-probability for each token")


def from_openai(client: OpenAI, model: str, prompt: Sequence[int], count: int) -> Greedy:
    """By OpenAI's interface, from a server whose log-probabilities name every token.

    Raises:
        openai.APIError: the server is gone, or answers with an error.
    """
    answer = client.completions.create(
        model=model, prompt=list(prompt), max_tokens=count, temperature=0, logprobs=1,
        extra_body={"return_tokens_as_token_ids": True},  # vLLM's
    )  # fmt: skip
    ids, logprobs = generated(answer.choices[0].logprobs)
    return Greedy(ids, list(logprobs))


def generated(logprobs: Any) -> tuple[list[int], list[float]]:
    """Token ids and log-probabilities in a completion's `logprobs`: a list of tokens from llama.cpp, OpenAI's old form from vLLM."""
    if content := getattr(logprobs, "content", None):
        return [token["id"] for token in content], [token["logprob"] for token in content]
    return [int(token.removeprefix("token_id:")) for token in logprobs.tokens], list(logprobs.token_logprobs)


def aligned(ids: Sequence[int], listed: Sequence[dict[str, Any]]) -> list[float | None]:
    """The log-probability of each of `ids` that llama.cpp `listed`.

    It keeps a token back that ends within a character, lists it never, and puts its bytes before those of the next one that it lists:
    such an entry has more bytes than the token by itself, which stands first in its `top_logprobs`.

    Raises:
        ValueError, KeyError, IndexError, TypeError: what is listed is not of these tokens, or in no such form.
    """
    found: list[float | None] = [None] * len(ids)
    place = 0
    for entry in listed:
        held_back = len(entry["bytes"]) > len(entry["top_logprobs"][0]["bytes"])
        place = list(ids).index(entry["id"], place + held_back)
        found[place] = float(entry["logprob"])
        place += 1
    return found
