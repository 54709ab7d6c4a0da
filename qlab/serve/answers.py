"""What a server may answer in a stream of completions: its form, and how much of it. A server under test may send anything."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any

import httpx2
from pydantic import BaseModel, ConfigDict, Field

from qlab.serve.runtimes.greedy import generated

LINE = 1 << 20  # bytes of a line of the stream; a token takes a few hundred
SPARE, BYTES_PER_TOKEN = 1 << 20, 1 << 16  # bytes of an answer: so many, and so many more for each token that was asked for


class Usage(BaseModel):
    """Tokens, as the server counts them."""

    model_config = ConfigDict(strict=True, from_attributes=True)
    completion_tokens: int = Field(ge=0, le=10**9)
    prompt_tokens: int = Field(ge=0, le=10**9)


class Choice(BaseModel):
    """A piece of text, with log-probabilities in the form of this or that server."""

    model_config = ConfigDict(strict=True, from_attributes=True)
    text: str
    logprobs: Any = None

    def tokens(self) -> tuple[list[int], list[float]]:
        """Ids and log-probabilities; none where the server gives none.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: they have no form that is known.
        """
        ids, logprobs = generated(self.logprobs) if self.logprobs else ([], [])
        if not all(isinstance(token, int) for token in ids) or not all(math.isfinite(value) for value in logprobs):
            raise ValueError("log-probabilities that are no numbers")
        if len(ids) != len(logprobs):
            raise ValueError("not a log-probability for each token")
        return ids, logprobs


class Part(BaseModel):
    """One event of the stream."""

    model_config = ConfigDict(strict=True, from_attributes=True)
    choices: list[Choice]
    usage: Usage | None = None


class Refused(ValueError):
    """An answer that is not read to its end, and why."""


class Measured(httpx2.AsyncHTTPTransport):
    """A transport that breaks off answers of more than `most` bytes, or with a line of more than LINE, and takes none that is compressed:
    a few bytes may stand for gigabytes."""

    def __init__(self, most: int, **options: Any) -> None:
        super().__init__(**options)
        self.most = most

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if "content-encoding" in response.headers:
            await response.aclose()
            raise Refused("compressed, though plain text was asked for")
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = Counted(response.stream, self.most)
        return response


class Counted(httpx2.AsyncByteStream):
    """A stream of bytes that counts them."""

    def __init__(self, stream: httpx2.AsyncByteStream, most: int) -> None:
        self.stream, self.most = stream, most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        seen = line = 0
        async for chunk in self.stream:
            seen += len(chunk)
            line = len(chunk) - 1 - end if (end := chunk.rfind(b"\n")) >= 0 else line + len(chunk)
            if seen > self.most or line > LINE:
                raise Refused("longer than an answer can be")
            yield chunk

    async def aclose(self) -> None:
        await self.stream.aclose()
