"""Run a function or a generator in a fresh process: no library's leftovers touch another's figures, and peak memory is its own.

What the child prints goes to a log; if it fails, the error carries the log's last lines. The child dies with its parent.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar, cast

import psutil

from qlab.support.disk.room import full
from qlab.support.disk.scratch import Scratch, sweep
from qlab.support.errors import UserError
from qlab.support.processes.starting import begin, end, starting

T = TypeVar("T")
CLOSING = 30.0  # seconds that a generator has to end in order; a server that it runs has 20
LEAVING = 2.0  # and its process then, to give back the semaphores that it shares with this process's keeper of them
STRAYING = 12.0  # and what a killed one has started; a server's keeper gives the server 8
MARK = "QLAB_ISOLATED"  # of the environment: what a child starts carries the child's mark, also when the child is gone
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of malloc.h


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What the function returned, how long it ran (seconds, without starting the process), and the process's peak memory in bytes."""

    value: T
    seconds: float
    peak_bytes: int


class Overdue(RuntimeError):
    """It was not done within its limit."""


class Died(RuntimeError):
    """Its process ended before it was done, with the exit `code`: -N where signal N ended it."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.code = code


def run_isolated(function: Callable[..., T], *arguments: Any, limit: float | None = None) -> Outcome[T]:
    """Call `function(*arguments)` in a new Python process and wait for it, for `limit` seconds where one is given.

    Raises:
        UserError: as the function raised it.
        OSError: the disk is full.
        Overdue: it was not done within the limit, and was killed.
        RuntimeError: any other failure, with what the child last printed.
    """
    with Isolated(called_once, function, arguments, name=full_name(function)) as process:
        return process.next(limit)


def called_once(function: Callable[..., T], arguments: tuple[Any, ...]) -> Generator[Outcome[T], None, None]:
    """The one outcome of a call in this process."""
    started = time.perf_counter()
    value = function(*arguments)
    yield Outcome(value, time.perf_counter() - started, peak_bytes())


class Isolated(Generic[T]):
    """A generator in a fresh process, which lives from one value to the next, with whatever the generator holds."""

    def __init__(self, generator: Callable[..., Generator[T, Any, None]], *arguments: Any, name: str = "", bare: bool = False) -> None:
        """Start the process, and the generator towards its first value; `name` is what a failure calls it. A `bare` process imports
        nothing that it is not asked for: neither PRELOADED nor this program's main module, of which nothing may be passed to it then.

        Raises:
            OSError: no process or no temporary folder can be made.
        """
        self.name = name or full_name(generator)
        self._folder = Scratch()
        self._log = self._folder.path / "log"
        context = multiprocessing.get_context("spawn") if bare else starting()
        self._pipe, theirs = context.Pipe()
        told = (theirs, str(self._log), dict(os.environ), generator, arguments)
        self._child = context.Process(target=_child, args=told, daemon=True)
        try:
            with without_main() if bare else nullcontext():
                self._child.start()
        except EOFError as error:  # the process that it should be a copy of was killed
            raise OSError(f"no process for {self.name} could be started") from error
        self._process = psutil.Process(self._child.pid) if psutil.pid_exists(self._child.pid or 0) else None
        theirs.close()
        self._waiting = False  # whether a value was taken, and the child waits to be asked for the next

    def next(self, limit: float | None = None) -> T:
        """The generator's next value.

        Raises:
            As `ask`.
        """
        return self.ask(None, limit)

    def ask(self, question: Any, limit: float | None = None) -> T:
        """The generator's next value; the `yield` that it waits at gives it the `question`.

        Raises:
            UserError: as the generator raised it.
            OSError: the disk is full.
            Overdue: it was not done within `limit` seconds.
            Died: its process ended.
            RuntimeError: any other failure, with what the child last printed. After any of them nothing more comes: close it.
        """
        asks, self._waiting = self._waiting, False  # whatever interrupts us now, it computes
        try:
            if asks:
                self._pipe.send((True, question))
            message: tuple[str, Any] = self._pipe.recv() if self._pipe.poll(limit) else ("overdue", f"not done within {limit:g} s")
        except (EOFError, OSError):
            self._child.join()
            message = "died", f"the process ended with exit code {self._child.exitcode}"
        kind, payload = message
        self._waiting = kind == "value"
        if kind == "value":
            return cast(T, payload)
        if kind == "user error":
            raise UserError(payload)
        if kind == "no room":
            raise OSError(payload, os.strerror(payload))
        printed = self._log.read_text(errors="replace") if self._log.exists() else ""
        tail = "\n".join(printed.splitlines()[-15:])
        said = f"{self.name} failed: {payload}\n{tail}".rstrip()
        if kind == "died":
            raise Died(said, self._child.exitcode)
        raise Overdue(said) if kind == "overdue" else RuntimeError(said)

    def ready(self, seconds: float) -> bool:
        """Whether what `next` returns first is there, or the process has ended; waits for it for so many seconds."""
        return self._pipe.poll(seconds)

    @property
    def alive(self) -> bool:
        """Whether the process is there still."""
        return self._child.is_alive()

    def close(self) -> None:
        """End the generator, where it waits, and its process in any case, and what that has started: also on Ctrl-C nothing is left
        running. A failure in the generator's own ending is dropped: what it yielded is whole, and nothing of it is left either."""
        started: list[psutil.Process] = []
        try:
            with suppress(psutil.NoSuchProcess):
                started = psutil.Process(self._child.pid).children(recursive=True)
            if self._waiting:
                with suppress(OSError):  # it is gone already
                    self._pipe.send((False, None))
                    self._pipe.poll(CLOSING)
            self._child.join(LEAVING)
        finally:
            self._pipe.close()
            self._child.kill()
            self._child.join()
            if self._process:
                with suppress(psutil.NoSuchProcess):  # it lives on where the one that it is a copy of, which tells of it, was killed
                    self._process.kill()
            # A server's keeper ends it when it sees that this child is gone; who has no keeper is killed.
            strays = psutil.wait_procs([*started, *marked(str(self._folder.path))], STRAYING)[1]
            for stray in strays:
                with suppress(psutil.NoSuchProcess):
                    stray.kill()
            psutil.wait_procs(strays, LEAVING)
            self._folder.remove()
            sweep(self._folder.path.parent)  # who was killed has left its own there

    def __enter__(self) -> Isolated[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def without_main() -> Iterator[None]:
    """Processes that are started here do not import the main module: a script that has no guard would run once more in them."""
    kept = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = kept


def full_name(function: Callable[..., Any]) -> str:
    """A function's name with its module's, as failures call it."""
    return f"{function.__module__}.{function.__qualname__}"


def marked(mark: str) -> list[psutil.Process]:
    """The processes that were started with this mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it is gone, or another user's
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


def peak_bytes(process: int | None = None) -> int:
    """Most memory this process ever held, or another one of this user's by its number; 0 where the system does not tell of others.

    Of the libraries in a process of `starting` what it has touched counts: some 0.15 GB less than in one that has imported them itself.

    Not getrusage on Linux: there a spawned child starts with its parent's peak.
    """
    status = Path(f"/proc/{process or 'self'}/status")
    if status.exists():
        return next((int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM")), 0)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return own if process is None else 0


def steady_heap() -> None:
    """Have glibc map tensors from 4 MiB on by themselves, and give them back when they are freed.

    By itself it raises that bound to 32 MiB as it goes; what lies below comes from a heap that many blocks leave full of holes:
    a walk over 32 blocks then held a third more than one over 8. With a bound of 1 MiB it took twice the time.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # musl has none, and needs none
        libc.mallopt(M_MMAP_MAX, 65536)  # glibc's own; keep_heap may have changed it
        libc.mallopt(M_MMAP_THRESHOLD, 4 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 32 << 20)


def keep_heap() -> None:
    """Have glibc keep what is freed, of any size, for what is asked for next.

    By itself it maps a large tensor anew each time, and the system fills it with zeros page by page. AutoAWQ's search for clipping bounds
    makes such tensors at every step. The process then holds what it needed at its peak until it ends.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def trim_heap() -> None:
    """Have glibc give back all free pages of its heap, also those between what is in use.

    Tensors below steady_heap's bound leave holes there that later ones do not fill exactly: over 30 blocks of matrices of 1 to 3 MB the
    heap grew by 270 MB, though no more of it was in use than at the start. It takes some milliseconds.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _child(
    pipe: Connection,
    log: str,
    variables: Mapping[str, str],
    generator: Callable[..., Generator[Any, Any, None]],
    arguments: tuple[Any, ...],
) -> None:
    begin({**variables, MARK: os.path.dirname(log)}, log)
    try:
        with closing(generator(*arguments)) as values, suppress(StopIteration):
            wanted, value = True, next(values)
            while wanted:
                pipe.send(("value", value))
                wanted, question = pipe.recv()
                value = values.send(question) if wanted else None
        message: tuple[str, Any] = ("ended", "it has come to its end")
    except UserError as error:
        message = ("user error", str(error))
    except BaseException as error:
        number = full(error)
        with suppress(OSError):  # the log may be on the disk that is full
            traceback.print_exc()
        message = ("no room", number) if number else ("error", f"{type(error).__name__}: {error}")
    pipe.send(message)
    end()
