"""Calls of what a model's files decide over, in a process of its own that may take little memory and time.

Programs that came with a model (chat templates), and libraries in other languages that read its files (tokenizers), may take any; the
operating system's limits on a process hold within one step of the interpreter too. One process does all calls, so that many are fast. On
macOS, which has no limit on memory, there is that on time.
"""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

import psutil

from qlab.support.processes.process import Died, Isolated, Overdue

T = TypeVar("T")
MEMORY = 2 << 30  # bytes that a call may take beyond what the process has then
WAITING, STARTING = 120.0, 300.0  # seconds by the clock, on a busy machine: for a call, and for the process to be there


class Exceeded(Exception):
    """A call took more than it may; the message says what, as the rest of a sentence that begins with who did."""


def confined(function: Callable[..., T], *arguments: Any, seconds: int) -> T:
    """`function(*arguments)`, where it takes at most so many `seconds` of computing and MEMORY. It is at the top of a module, and raises
    nothing; what it is given and returns can be pickled.

    Raises:
        Exceeded: it takes more, or ends its process.
    """
    try:
        done, value = _asked((function, arguments, seconds))
    except Overdue as error:
        raise Exceeded(f"was not done in {WAITING:g} seconds") from error
    except Died as error:
        if error.code == -signal.SIGXCPU:
            raise Exceeded(f"was not done in {seconds} seconds of computing") from error
        raise Exceeded(f"asked for more than {MEMORY >> 30} GiB of memory, or broke the process that it ran in ({error.code})") from error
    if not done:
        raise Exceeded(f"asked for more than {MEMORY >> 30} GiB of memory")
    return value


def _asked(request: tuple[Callable[..., Any], tuple[Any, ...], int]) -> tuple[bool, Any]:
    """What the process answers; one that may be the worse for it is replaced."""
    process = _worker()
    try:
        answer = process.ask(request, WAITING)
    except BaseException:
        _end_worker()
        raise
    if not answer[0]:
        _end_worker()
    return answer


@cache
def _worker() -> Isolated[tuple[bool, Any]]:
    """The process of all calls, for as long as this one lives."""
    process = Isolated(calls, name="a call in a process of its own", bare=True)
    try:
        process.next(STARTING)
    except BaseException:
        process.close()
        raise
    return process


def _end_worker() -> None:
    _worker().close()
    _worker.cache_clear()


def calls() -> Generator[tuple[bool, Any], tuple[Callable[..., Any], tuple[Any, ...], int], None]:
    """Whether there was memory enough, and the value, of each call that is asked for."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer: tuple[bool, Any] = (True, None)  # it is ready
    while True:
        function, arguments, seconds = yield answer
        limit_memory(MEMORY)
        limit_seconds(seconds)
        try:
            answer = (True, function(*arguments))
        except MemoryError:
            answer = (False, None)


def limit_memory(more: int) -> None:
    """Let this process have `more` bytes of addresses beyond those that it has now, where the system has such a limit."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    with suppress(ValueError, OSError):  # macOS
        resource.setrlimit(resource.RLIMIT_AS, (lower(psutil.Process().memory_info().vms + more, hard), hard))


def limit_seconds(more: int) -> None:
    """Have the system end this process (SIGXCPU) when it has computed `more` seconds from now on."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (lower(int(time.process_time()) + 1 + more, hard), hard))


def lower(wanted: int, hard: int) -> int:
    """A limit that is wanted, or the highest that may be set."""
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
