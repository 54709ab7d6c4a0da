"""What a server answers while it is proved may be anything: it is one message, or a check that fails."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.artifacts.artifact import quantize_model
from qlab.models.opening import OpenedModel
from qlab.recipes import parse
from qlab.serve.deployment import Deployment
from qlab.serve.proof import Agreement, in_words, prove
from qlab.serve.runtimes.greedy import Greedy, aligned
from qlab.serve.runtimes.llamacpp import LlamaCpp
from qlab.serve.runtimes.vllm import VLLM
from qlab.support.errors import UserError
from qlab.workbook.language.spoken import VARIABLE, gettext


def entry(token: int, held_back: int = 0, logprob: Any = -0.5) -> dict[str, Any]:
    """An entry of llama.cpp's list, with the bytes of so many tokens that it has held back before its own."""
    return {"id": token, "logprob": logprob, "bytes": [1] * (1 + held_back), "top_logprobs": [{"bytes": [1]}]}


def test_how_far_the_two_agree_is_said_in_the_language_that_is_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    found = in_words(Agreement(identical=0.5, in_context=1.0, margin=0.01, error=0.02, rounding=0.1, largest_rounding=0.2))
    assert found.startswith("50% identical, 100% after the same tokens; largest margin 0.0100 (at most 0.6010), ")
    monkeypatch.setenv(VARIABLE, "fr")
    assert gettext(found).startswith(
        "50\u00a0% identiques, 100\u00a0% après les mêmes jetons\u00a0; plus grande marge 0.0100 (au plus 0.6010), "
    )


def test_log_probabilities_are_laid_beside_their_tokens() -> None:
    assert aligned([7, 8], [entry(7, logprob=-0.1), entry(8, logprob=-0.2)]) == [-0.1, -0.2]
    assert aligned([7, 8, 9], [entry(7), entry(9, held_back=1)]) == [-0.5, None, -0.5]
    assert aligned([7, 7, 7], [entry(7), entry(7, held_back=1, logprob=-0.3)]) == [-0.5, None, -0.3]
    assert aligned([7, 8], [entry(7)]) == [-0.5, None]
    assert aligned([7], []) == [None]


@pytest.mark.parametrize(
    "listed",
    [[entry(9)], [entry(7), entry(7)], [entry(8), entry(7)], [{}], [None], ["x"], [entry(7) | {"bytes": None}],
     [entry(7) | {"top_logprobs": []}], [entry(7) | {"top_logprobs": None}], [entry(7) | {"id": "7"}], [entry(7, logprob="x")],
     [entry(7, logprob=None)], [entry(7) | {"id": math.nan}], [entry(7, held_back=3)]],
)  # fmt: skip
def test_what_is_not_of_these_tokens_is_refused(listed: Any) -> None:
    with pytest.raises((ValueError, LookupError, TypeError)):
        aligned([7, 8][: 2 if listed != [entry(7, held_back=3)] else 1], listed)


@pytest.mark.parametrize(
    ("ids", "logprobs"),
    [([], []), ([1], []), ([1], [0.0, 0.0]), ([-1], [0.0]), (["1"], [0.0]), ([True], [0.0]), ([1.0], [0.0]), ([1], [math.nan]),
     ([1], ["x"])],
)  # fmt: skip
def test_greedy_tokens_are_numbers_with_a_log_probability_each(ids: Any, logprobs: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        Greedy(ids, logprobs)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
ENTRIES = st.lists(
    st.fixed_dictionaries({}, optional={"id": JSON, "logprob": JSON, "bytes": JSON, "top_logprobs": JSON | st.just([{"bytes": [1]}])}),
    max_size=3,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=4), ENTRIES)
def test_any_list_is_aligned_or_refused(ids: list[int], listed: list[dict[str, Any]]) -> None:
    with suppress(ValueError, LookupError, TypeError):
        found = Greedy(ids, aligned(ids, listed))
        assert len(found.logprobs) == len(ids)
        assert sum(value is not None for value in found.logprobs) <= len(listed)


COMPLETION = {"id": "x", "object": "text_completion", "created": 0, "model": "m"}


def completed(**changes: Any) -> dict[str, Any]:
    """A completion in vLLM's form, of two tokens."""
    logprobs = {"tokens": ["token_id:1", "token_id:2"], "token_logprobs": [-0.1, -0.2]}
    return COMPLETION | {"choices": [{"index": 0, "text": "ab", "logprobs": logprobs | changes, "finish_reason": "length"}]}


@contextmanager
def answering(body: bytes, status: int = 200) -> Iterator[int]:
    """The port of a server that says the same to everybody."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def artifact(tiny: OpenedModel, calibration: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantize_model(tiny, [parse("rtn-w4g64")], calibration, tmp_path_factory.mktemp("artifacts"))[0].path


ANSWERS: dict[str, Any] = {
    "no JSON": b"hello",
    "null": None,
    "a list": [1],
    "nothing": {},
    "no choices": COMPLETION | {"choices": []},
    "no log-probabilities": completed() | {"choices": [{"index": 0, "text": "ab", "logprobs": None}]},
    "no tokens": completed(tokens=[], token_logprobs=[]),
    "tokens that are no ids": completed(tokens=["the", "a"]),
    "tokens that no model has": completed(tokens=["token_id:1", "token_id:9999999999999999999999"]),
    "a token beyond this model": completed(tokens=["token_id:1", "token_id:4096"]),
    "fewer log-probabilities": completed(token_logprobs=[-0.1]),
    "a log-probability of text": completed(token_logprobs=["x", "y"]),
    "a log-probability of infinity": completed(token_logprobs=[-0.1, -math.inf]),
    "nested too deeply": b"[" * 100_000,
    "kilobytes of complaint": (b"x" * 100_000, 500),
    "not found": (b"{}", 404),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("runtime", [VLLM(), LlamaCpp()], ids=lambda runtime: runtime.name)
def test_an_answer_of_another_form_is_one_message(name: str, runtime: Any, artifact: Path) -> None:
    answer, status = ANSWERS[name] if isinstance(ANSWERS[name], tuple) else (ANSWERS[name], 200)
    with answering(answer if isinstance(answer, bytes) else json.dumps(answer).encode(), status) as port:
        deployment = Deployment(artifact, "m", context=64, port=port)
        with pytest.raises(UserError, match="does not answer as it must: not proved") as refused:
            prove(runtime, deployment, SimpleNamespace(url=deployment.url, key=None, model="m"), tokens=2)  # type: ignore[arg-type]
    assert len(str(refused.value)) < 500


def test_tokens_of_another_model_fail_the_check_and_what_follows_is_one_message(artifact: Path) -> None:
    """The tokens have a form that is known, and the list of models has none."""
    with answering(json.dumps(completed()).encode()) as port:
        deployment = Deployment(artifact, "m", context=64, port=port)
        with pytest.raises(UserError, match="not proved"):
            prove(VLLM(), deployment, SimpleNamespace(url=deployment.url, key=None, model="m"), tokens=2)  # type: ignore[arg-type]
