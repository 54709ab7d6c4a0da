"""A load test against servers that send anything: whatever comes is counted, every wait ends, and no answer costs another its figures."""

from __future__ import annotations

import gzip
import json
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.cli import call
from qlab.serve.load import ELSEWHERE, Level, check_url, run_load
from qlab.support.errors import UserError

Behaviour = Callable[[socket.socket], Any]
PROMPTS = [f"prompt {number}" for number in range(6)]
SHORT, LONG_ENOUGH = 0.4, 60.0  # seconds for an answer: to come too late, and where it comes at once, on a busy machine too
LATE, WRONG, LONG, GONE = "not whole in time", "no answer of a known form", "longer than an answer can be", "APIConnectionError"


@contextmanager
def server(behave: Behaviour) -> Iterator[str]:
    """The URL of a server that reads each request's head and then does as `behave` says."""

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            seen = b""
            while b"\r\n\r\n" not in seen:
                seen += connection.recv(65536)
            behave(connection)

    def listen() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        threading.Thread(target=listen, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


def event(**changes: Any) -> bytes:
    """One event of a stream of completions."""
    found = {"id": "x", "object": "text_completion", "choices": [{"index": 0, "text": "a", "logprobs": None}], "usage": None}
    return b"data: " + json.dumps(found | changes).encode() + b"\n\n"


def used(**counts: Any) -> bytes:
    return event(choices=[], usage={"completion_tokens": 4, "prompt_tokens": 2, "total_tokens": 6} | counts)


def told(ids: list[Any], logprobs: list[Any], text: Any = "a") -> bytes:
    """An event with log-probabilities in vLLM's form."""
    return event(choices=[{"index": 0, "text": text, "logprobs": {"tokens": ids, "token_logprobs": logprobs}}])


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"
DONE = b"data: [DONE]\n\n"
GOOD = event() * 4 + used() + DONE


def whole(body: bytes, head: bytes = HEAD) -> Behaviour:
    """The answer at once."""
    return lambda connection: connection.sendall(head + b"\r\n" + body)


def endless(piece: bytes, pause: float = 0, head: bytes = HEAD + b"\r\n") -> Behaviour:
    def behave(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)
            time.sleep(pause)

    return behave


def silent(connection: socket.socket) -> None:
    while connection.recv(65536):  # until the client leaves
        pass


SERVERS: dict[str, tuple[Behaviour, str]] = {
    "list": (whole(b"data: [1, 2]\n\n"), WRONG),
    "no JSON": (whole(b"data: {\n\n"), WRONG),
    "nothing but the end": (whole(DONE), "no tokens"),
    "text null": (whole(event(choices=[{"text": None}]) + used() + DONE), WRONG),
    "choices of text": (whole(event(choices="abc") + used() + DONE), WRONG),
    "usage of text": (whole(event() + event(usage="many") + DONE), WRONG),
    "negative tokens": (whole(event() + used(completion_tokens=-4) + DONE), WRONG),
    "more tokens than asked for": (whole(event() + used(completion_tokens=400) + DONE), WRONG),
    "tokens NaN": (whole(event() + used(completion_tokens=math.nan) + DONE), WRONG),
    "tokens of 5000 digits": (whole(event() + used(completion_tokens=77).replace(b"77", b"9" * 5000) + DONE), WRONG),
    "fewer log-probabilities than tokens": (whole(told(["token_id:1", "token_id:2"], [-0.1]) + used() + DONE), WRONG),
    "log-probability infinite": (whole(told(["token_id:1"], [-math.inf]) + used() + DONE), WRONG),
    "tokens that are no ids": (whole(told(["the"], [-0.1]) + used() + DONE), WRONG),
    "nested too deeply": (whole(b"data: " + b"[" * 100_000 + b"\n\n"), WRONG),
    "not UTF-8": (whole(b"data: \xff\xfe\n\n"), WRONG),
    "an error of kilobytes": (whole(b'data: {"error": {"message": "' + b"m" * 5000 + b'"}}\n\n'), WRONG),
    "endless events": (endless(event(), 0.001), LATE),
    "endless comments": (endless(b": ping\n\n", 0.001), LATE),
    "endless line": (endless(b"data: " + b"a" * 65536), LONG),
    "endless lines": (endless(b"data: " + b"a" * 65536 + b"\n"), LONG),
    "endless error": (endless(b"a" * 65536, head=b"HTTP/1.1 500 No\r\n\r\n"), LONG),
    "endless head": (endless(b"X: y\r\n" * 999, head=HEAD), GONE),
    "endless provisional answers": (endless(b"HTTP/1.1 100 Continue\r\n\r\n", 0.001, b""), LATE),
    "slow": (endless(event(), 0.2), LATE),
    "a byte at a time": (endless(b"d", 0.1), LATE),
    "silent": (silent, LATE),
    "closes": (lambda connection: None, GONE),
    "noise": (lambda connection: connection.sendall(os.urandom(1000)), GONE),
    "compressed": (whole(gzip.compress(bytes(10**8)), HEAD + b"Content-Encoding: gzip\r\n"), "compressed, though plain text was asked for"),
    "redirected for ever": (whole(b"", b"HTTP/1.1 307 No\r\nLocation: /v1/completions\r\nContent-Length: 0\r\n"), ELSEWHERE),
    "redirected to a file": (whole(b"", b"HTTP/1.1 307 No\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n"), ELSEWHERE),
    "not found": (whole(b"", b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n"), "NotFoundError"),
}  # fmt: skip


def ask(url: str, timeout: float = LONG_ENOUGH, prompts: list[str] = PROMPTS, levels: tuple[int, ...] = (1, 2)) -> list[Level]:
    return run_load(url, "m", prompts, levels, 4, timeout=timeout)


@pytest.mark.parametrize("name", SERVERS)
def test_whatever_a_server_sends_is_counted_in_time(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    behave, expected = SERVERS[name]
    started = time.monotonic()
    with server(behave) as url:
        (level,) = ask(url, SHORT if expected == LATE else LONG_ENOUGH)
    lost = {"not sent: the server is gone": 3} if expected in (LATE, GONE) else {}
    assert level.errors == {expected: 6 - sum(lost.values())} | lost
    assert time.monotonic() - started < LONG_ENOUGH
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["list", "fewer log-probabilities than tokens", "endless line", "a byte at a time", "noise", "compressed"])
def test_a_broken_answer_costs_no_other_its_figures(name: str) -> None:
    """Every second answer is broken, also where both go over one place in the pool of connections."""
    turns = iter(range(10**6))

    def behave(connection: socket.socket) -> Any:
        return SERVERS[name][0](connection) if next(turns) % 2 else whole(GOOD)(connection)

    with server(behave) as url:
        levels = ask(url, 10 * SHORT, PROMPTS[:2]) if SERVERS[name][1] == LATE else ask(url)
    assert [level.errors for level in levels] == [{SERVERS[name][1]: level.requests // 2} for level in levels]
    assert all(level.output_throughput > 0 and level.ttft for level in levels)


@pytest.mark.parametrize("way", ["redirect", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"])
def test_nobody_but_the_server_is_asked(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that the server names nor a proxy of the environment, which would be sent the key."""
    asked = list[int]()
    with server(lambda connection: asked.append(1)) as other:
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("NO_PROXY", "")
        if way != "redirect":
            monkeypatch.setenv(way, other)
        head = f"HTTP/1.1 308 No\r\nLocation: {other}/v1/completions\r\nContent-Length: 0\r\n".encode()
        with server(whole(b"", head) if way == "redirect" else whole(GOOD)) as url:
            (level, *_) = run_load(url, "m", PROMPTS, [2], 4, key="secret", timeout=LONG_ENOUGH)
    assert level.errors == ({ELSEWHERE: 6} if way == "redirect" else {})
    assert asked == []


def test_answers_that_part_are_counted_with_what_little_is_known_of_them() -> None:
    """The second of two like prompts is answered otherwise, and no log-probabilities of the first are there to hold it against."""
    turns = iter(range(10**6))

    def behave(connection: socket.socket) -> Any:
        body = event(choices=[{"index": 0, "text": str(next(turns))}]) + used() + DONE
        return whole(body)(connection)

    with server(behave) as url:
        levels = ask(url)
    assert [(level.errors, level.changed, level.wrong) for level in levels] == [({}, 0, 0), ({}, 6, 0)]


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A good stream of events with pieces of it cut out, doubled and overwritten."""
    body = bytearray(told(["token_id:1", "token_id:2"], [-0.1, -0.5]) + GOOD)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        end = start + draw(st.integers(0, 40))
        body[start:end] = draw(
            st.one_of(st.binary(max_size=8), st.sampled_from([b"null", b"-1", b"1e999", b"[]", b"{}", b"\n\n", body[start:end] * 2]))
        )
    return bytes(body)


@settings(max_examples=50, deadline=None)
@given(st.one_of(streams(), st.binary(max_size=300)))
def test_any_stream_is_an_answer_or_an_error(body: bytes) -> None:
    with server(whole(body)) as url:
        (level,) = ask(url, LONG_ENOUGH, PROMPTS[:1], (1,))
    assert sum(level.errors.values()) == (0 if level.ttft else 1)
    figures = [level.output_throughput, level.total_throughput, *level.ttft.values(), *level.tpot.values(), *level.itl.values()]
    assert all(math.isfinite(figure) and figure >= 0 for figure in figures)


def test_ctrl_c_ends_a_load_at_once() -> None:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    started = time.monotonic()
    try:
        with server(silent) as url, pytest.raises(KeyboardInterrupt):  # noqa: PT012 - not before it is awaited
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            run_load(url, "m", PROMPTS, [2], 4, timeout=120)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - started < 60  # no answer was waited for


@pytest.mark.parametrize(
    "url",
    ["", "x", "127.0.0.1:8000", "ftp://x", "http://", "http://127.0.0.1:99999", "http://127.0.0.1:-1", "http://x:y", "http://☃.invalid",
     "http://[::1", "http://a b", "http://x/?q", "http://x/#f", "http://x\n.y", "http://\udcff", "h" * 100_000,
     "http://" + "9" * 5000 + ":1:1"],
)  # fmt: skip
def test_what_is_no_servers_address_is_one_message(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["load", url, "--model", "m"]) == 2
    printed = capsys.readouterr().err
    assert "expected an address such as" in " ".join(printed.split())
    assert len(printed) < 500


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.text().map("http://{}".format), st.text().map("http://127.0.0.1:{}".format)))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    with suppress(UserError):
        check_url(text)
