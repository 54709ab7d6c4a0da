"""Run one function in a fresh process: no library's leftovers touch another's figures, and peak memory is its own.

What the child prints goes to a log; if it fails, the error carries the log's last lines. The child dies with its parent.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, TypeVar

from qlab.errors import UserError

T = TypeVar("T")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What the function returned, how long it ran (seconds, without starting the process), and the process's peak memory in bytes."""

    value: T
    seconds: float
    peak_bytes: int


def run_isolated(function: Callable[..., T], *arguments: Any, limit: float | None = None) -> Outcome[T]:
    """Call `function(*arguments)` in a new Python process and wait for it, for `limit` seconds where one is given.

    Raises:
        UserError: as the function raised it.
        RuntimeError: any other failure, with what the child last printed; or it was not done within the limit, and was killed.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="qlab-") as folder:
        log = Path(folder) / "log"
        child = context.Process(target=_child, args=(sender, str(log), function, arguments), daemon=True)
        child.start()
        sender.close()
        try:
            if receiver.poll(limit):
                kind, payload = receiver.recv()
                child.join(timeout=5)
            else:
                kind, payload = "died", f"not done within {limit:g} s"
        except EOFError:
            child.join()
            kind, payload = "died", f"the process ended with exit code {child.exitcode}"
        finally:  # also on Ctrl-C: nothing is left running
            child.kill()
            child.join()
        printed = log.read_text(errors="replace") if log.exists() else ""
    if kind == "done":
        return Outcome(*payload)
    if kind == "user error":
        raise UserError(payload)
    tail = "\n".join(printed.splitlines()[-15:])
    raise RuntimeError(f"{function.__module__}.{function.__qualname__} failed: {payload}\n{tail}".rstrip())


def peak_bytes() -> int:
    """Most memory this process ever held. Not getrusage on Linux: there a spawned child starts with its parent's peak."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def steady_heap() -> None:
    """Have glibc map tensors from 4 MiB on by themselves, and give them back when they are freed.

    By itself it raises that bound to 32 MiB as it goes; what lies below comes from a heap that many blocks leave full of holes:
    a walk over 32 blocks then held a third more than one over 8. With a bound of 1 MiB it took twice the time.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # musl has none, and needs none
        libc.mallopt(M_MMAP_THRESHOLD, 4 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 32 << 20)


def _child(sender: Connection, log: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    try:
        started = time.perf_counter()
        value = function(*arguments)
        message: tuple[str, Any] = ("done", (value, time.perf_counter() - started, peak_bytes()))
    except UserError as error:
        message = ("user error", str(error))
    except BaseException as error:
        traceback.print_exc()
        message = ("error", f"{type(error).__name__}: {error}")
    sender.send(message)


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
