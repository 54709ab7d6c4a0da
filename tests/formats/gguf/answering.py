"""llama.cpp in one process for many small files, one after the other: started anew for each, Python would take longer than it.

No PyTorch there, which would cost it seconds. How qlab serves a file otherwise, in a process of its own under a keeper, tests/serve has.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Generator, Iterator, Sequence
from http.client import HTTPException
from itertools import islice
from pathlib import Path
from typing import Any

from qlab.serve.runtimes.llamacpp_server import start
from qlab.support.processes.process import Isolated

PLACES = 3  # of a text that are told
Question = tuple[Path, Sequence[int], int, int]
"""A GGUF file, a text in tokens, of how many tokens the log-probabilities are wanted, and a free port."""
Told = list[tuple[int, list[dict[str, Any]]]]
"""Lengths of beginnings of the text, and what llama.cpp says of the likeliest next tokens: `id`, `logprob`."""
LIMIT = 120.0  # seconds for a file


def answers() -> Generator[Told, Question, None]:
    """What the server answers to each question; the first value answers none."""
    found: Told = []
    while True:
        file, ids, wanted, port = yield found
        server = start(file, port, 2, 1024)
        wait(f"http://127.0.0.1:{port}")
        found = list(islice(told(f"http://127.0.0.1:{port}", ids, wanted), PLACES))
        del server


def told(url: str, ids: Sequence[int], wanted: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The longest beginnings of a text first; none where the likeliest token is a part of a letter, of which llama.cpp says nothing."""
    for length in range(len(ids), 0, -1):
        asked = {"prompt": list(ids[:length]), "n_predict": 1, "temperature": -1.0, "n_probs": wanted}
        with urllib.request.urlopen(f"{url}/completion", json.dumps(asked).encode(), timeout=LIMIT) as said:
            answer = json.load(said)
        if "completion_probabilities" in answer:
            yield length, answer["completion_probabilities"][0]["top_logprobs"]


def wait(url: str) -> None:
    """Until the file is loaded."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (OSError, HTTPException):
            time.sleep(0.01)


class OneProcess:
    """The process, begun when it is first asked, and again after a file has ended it."""

    def __init__(self) -> None:
        self._process: Isolated[Told] | None = None

    def ask(self, file: Path, ids: Sequence[int], wanted: int) -> Told:
        """What llama.cpp says from a file of the `wanted` likeliest tokens at three places of a text.

        Raises:
            RuntimeError: llama.cpp ended, or was not done in time.
        """
        from qlab.serve.server import free_port  # here: it imports PyTorch, and the process imports this file

        if self._process is None:
            self._process = Isolated(answers, name="llama.cpp", bare=True)
            self._process.next()
        try:
            return self._process.ask((file, ids, wanted, free_port()), LIMIT)
        except RuntimeError:
            self.close()
            raise

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None
