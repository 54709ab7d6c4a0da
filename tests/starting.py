"""Commands of qlab's as copies of one process that has imported its libraries: each saves the seconds that these imports take.

A copy does all the rest as `python -m qlab` does: it is in a session of its own, where that is asked, with its own folder, environment,
files and handlers of signals, and imports qlab's own modules itself. It shares with other copies Python's seed for hashes, and what
libraries read of the environment as they are imported; and it ends without taking apart what was imported. So each test that uses copies
starts at least one command truly, too: `start(..., true=True)`.

The copies of qlab.support.processes.starting do not serve here: multiprocessing knows them for children, so that a command would start its
own processes in another way than it does for users.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Protocol

from qlab import ROOT

# Of what commands import, what takes long, starts no thread and touches no GPU, which a copy could not use then.
LIBRARIES = (
    "torch", "transformers", "transformers.modeling_utils", "transformers.models.llama.modeling_llama", "scipy.optimize", "gguf",
    "pydantic", "typer", "rich.progress", "jinja2",
)  # fmt: skip
REQUEST = 1 << 20  # bytes, at most: words and environment of a command
TURN = 0.005  # seconds between two looks at whether a command has ended
STARTING = 300  # seconds until a copy is there; the first waits for the imports


class Started(Protocol):
    """A command at work, as subprocess.Popen and Copy tell of it."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...


class Copy:
    """A command that runs as a copy; what it does not share with subprocess.Popen is left out."""

    def __init__(self, pid: int, words: Sequence[str], told: int) -> None:
        self.pid, self.words, self.returncode = pid, words, None
        self._told = told  # where its end is told

    returncode: int | None

    def poll(self) -> int | None:
        """Its exit code, -N where signal N ended it; None while it runs."""
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            said = os.read(self._told, 32)
            os.close(self._told)
            if not said:
                raise OSError("the process that commands are copies of is gone")
            self.returncode = os.waitstatus_to_exitcode(int(said))
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, when it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not within so many seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(list(self.words), timeout or 0)
            time.sleep(TURN)
        return code

    def send_signal(self, sig: int) -> None:
        """As subprocess.Popen: nothing where it has ended. It is no zombie then, but its number is not given away so soon."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)


def start(
    words: Sequence[str],
    out: IO[bytes],
    err: IO[bytes],
    folder: Path | str = ".",
    environment: Mapping[str, str] | None = None,
    session: bool = False,
    true: bool = False,
) -> Started:
    """The command `qlab words…` at work in `folder`, which prints to `out` and `err` and reads nothing; in a `session` of its own. A `true`
    one is started as users do, with all its imports; so are all where processes do not bear to be copied."""
    variables = dict(os.environ if environment is None else environment)
    if true or sys.platform != "linux":
        command = [sys.executable, "-m", "qlab", *words]
        return subprocess.Popen(
            command, cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=session
        )
    told, tells = os.pipe()
    asks, _ = _server(variables.get("OMP_NUM_THREADS"))
    request = json.dumps({"words": list(words), "folder": os.path.abspath(folder), "environment": variables, "session": session})
    try:
        socket.send_fds(asks, [os.fsencode(request)], [out.fileno(), err.fileno(), tells])
    finally:
        os.close(tells)
    pid = os.read(told, 8) if select.select([told], [], [], STARTING)[0] else b""
    if not pid:
        raise OSError("the process that commands are copies of does not answer")
    return Copy(int.from_bytes(pid), words, told)


@cache
def _server(threads: str | None) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Where this process asks for copies with so many threads, which PyTorch reads as it is imported; and who makes them, until this
    process ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, REQUEST)
    command = [sys.executable, "-m", "tests.starting", str(theirs.fileno())]
    variables = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if threads is not None:
        variables["OMP_NUM_THREADS"] = threads
    with theirs:  # in a session of its own, where no Ctrl-C reaches it
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    atexit.register(_end, ours, process)
    return ours, process


def _end(asks: socket.socket, process: subprocess.Popen[bytes]) -> None:
    asks.close()
    process.wait()


def serve(asked: socket.socket) -> list[str]:
    """Make copies until nobody is there who could ask for one. Returns in each copy, with its words."""
    for name in LIBRARIES:
        import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a copy would lack the threads of what is imported"
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}
    while True:
        ready = select.select([asked, woken], [], [])[0]
        if woken in ready:
            os.read(woken, 4096)
            while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                tells = running.pop(ended[0])
                with suppress(BrokenPipeError):  # nobody waits for it any more
                    os.write(tells, b"%d" % ended[1])
                os.close(tells)
        if asked in ready:
            message, files, _, _ = socket.recv_fds(asked, REQUEST, 3)
            if not message:
                sys.exit()
            out, err, tells = files
            if pid := os.fork():
                running[pid] = tells
                os.write(tells, pid.to_bytes(8))
                os.close(out)
                os.close(err)
            else:
                asked.close()
                return become(json.loads(message), out, err)


def become(request: dict[str, object], out: int, err: int) -> list[str]:
    """Let this copy be as a new process is: its files, its folder, its environment, its signals. Returns its words."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if request["session"]:
        os.setsid()
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.closerange(3, max(int(name) for name in os.listdir("/proc/self/fd")) + 1)
    os.chdir(str(request["folder"]))
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    tempfile.tempdir = None  # it is read of the environment anew
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=bool(os.environ.get("PYTHONUNBUFFERED")))  # type: ignore[union-attr]
    given = [name for name in os.environ.get("PYTHONPATH", "").split(os.pathsep) if name and name not in sys.path[1:]]
    sys.path[:1] = [os.getcwd(), *given]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("qlab", "tests")]:
        del sys.modules[name]  # it imports them itself
    return [str(word) for word in request["words"]]  # type: ignore[attr-defined]


def end(code: int) -> None:
    """As Python ends, but for taking apart what was imported, which takes a copy two seconds."""
    atexit._run_exitfuncs()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.argv = ["qlab", *serve(socket.socket(fileno=int(sys.argv[1])))]
    try:
        runpy.run_module("qlab", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if not isinstance(ended.code, int):
            raise
        end(ended.code)
