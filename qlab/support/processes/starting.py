"""How processes of their own start: on Linux as copies of one that has imported what each would import."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, SpawnContext
from typing import Any, NoReturn

import psutil

from qlab.support.disk.scratch import Scratch

PRELOADED = ("torch", "transformers", "transformers.modeling_utils")  # no GPU is touched by their import, which a copy could not use then
LONGEST = 88  # bytes of the name of a folder for sockets, whose own names end it; the system allows 107 in all

_sharing = False
_further: tuple[str, ...] = ()


def preload(*modules: str) -> None:
    """Have the process that others are copies of import these modules beside PRELOADED: for a program that starts many processes which all
    want them. They may touch no GPU, nor start a thread. It counts where no process was started before."""
    global _further
    _further = modules


def starting() -> ForkServerContext | SpawnContext:
    """How the next process is started: on Linux as a copy of a process that has imported PRELOADED, and what `preload` was told, and done
    nothing else, which saves each the seconds that these imports take. That process is started here, with the first of them, and ends with
    this one.

    A copy has this process's environment as it is now, but what the libraries read when they are imported, such as OMP_NUM_THREADS, they
    read before. A copy's own processes are started anew, unless it has called `share`, and so are all elsewhere: a Mac's libraries do not
    bear to be copied.

    Raises:
        OSError: no process or no temporary folder can be made.
    """
    if _sharing:
        return multiprocessing.get_context("forkserver")
    if sys.platform != "linux" or multiprocessing.parent_process() is not None or len(os.fsencode(folder := sockets())) > LONGEST:
        return multiprocessing.get_context("spawn")
    multiprocessing.current_process()._config["tempdir"] = folder  # type: ignore[attr-defined]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *_further])
    with interruptions_held():  # while it imports; afterwards it ignores them
        forkserver.ensure_running()
    return context


def begin(variables: Mapping[str, str], log: str) -> None:
    """What a process that was started so does first. It takes these environment variables, prints to the file `log`, hears Ctrl-C, may have
    processes of its own, and ends with whoever asked for it.

    Raises:
        OSError: the file cannot be opened.
    """
    os.environ.clear()  # a copied process has those of its own start
    os.environ.update(variables)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # which a copied process has blocked
    # A daemon, so that the parent's end ends it; but a daemon of multiprocessing's may have no processes.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def end() -> NoReturn:
    """End this process at once: a Python that has loaded PyTorch takes a second to tear itself down."""
    atexit._run_exitfuncs()  # multiprocessing lets a copy end without them; temporary folders go by them
    os._exit(0)


def _die_with_parent() -> None:
    """Wait for the end of the process that asked for this one, which on Linux is not the one that it is a copy of."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def copied_from_one(context: ForkServerContext | SpawnContext) -> bool:
    """Whether a process that is started so is a copy."""
    return isinstance(context, ForkServerContext)


def share() -> None:
    """From here on, have this copy's own processes be copies of the same process. They end with this one, as its children would; but they
    are none of its children, and whoever ends this one cannot wait for them.

    multiprocessing says that a child uses its parent's process again, and has its address; but it starts another, since it has no number.
    The keeper of semaphores is a new one: of what a copy leaves that is ended at once, it warns where that one prints.
    """
    global _sharing
    keeper: Any = resource_tracker._resource_tracker
    os.close(keeper._fd)
    keeper._fd = keeper._pid = None
    server: Any = forkserver._forkserver
    server.ensure_running = lambda: None
    _sharing = True


def end_copies(seconds: float) -> None:
    """Wait, for at most so many seconds, until no copy of this process's is left, and end those that are. What an ended copy had started
    sees that it is gone a moment later, and until then holds its temporary folders."""
    server: Any = forkserver._forkserver
    until = time.monotonic() + seconds
    with suppress(psutil.NoSuchProcess):  # it has ended, and its copies see that
        while server._forkserver_pid and (left := psutil.Process(server._forkserver_pid).children(recursive=True)):
            for process in left if time.monotonic() >= until else []:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, max(1.0, until - time.monotonic()))


def sockets() -> str:
    """The name of a folder for the socket of the process that others are copies of: it goes with this process, however that ends."""
    return str(_folder().path)


@cache
def _folder() -> Scratch:
    return Scratch()


@contextmanager
def interruptions_held() -> Iterator[None]:
    """A process that is started here is not ended by Ctrl-C; this one hears of it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
