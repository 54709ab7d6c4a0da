"""A server's keeper: run as a program, it starts a command and sees to it that nothing of it outlives whoever wanted it.

It ends the command, and all that this has started, when its standard input closes: that is a pipe to the process that wants
the server, and closes however that process ends. Orphans fall to the keeper, not to the system, so none escapes it. If the keeper itself
is killed, Linux kills the command. Temporary files the command has in a folder of its own, which the keeper removes: vLLM leaves sockets
and more behind at every start.
"""

from __future__ import annotations

import ctypes
import getpass
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress

import psutil

from qlab.support.disk.scratch import Scratch

GRACE = 8  # seconds between asking and killing
LONGEST = 60  # characters of a folder for sockets; they are named by 36 more, and a hundred or so are allowed
DEATH_SIGNAL, SUBREAPER = 1, 36  # PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER of <linux/prctl.h>
PRCTL = getattr(ctypes.CDLL(None), "prctl", None)  # looked up here: between fork and exec nothing should be


def main() -> None:
    """Run the command in the arguments; the exit code is its own."""
    wanted = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: wanted.set())
    if PRCTL:
        PRCTL(SUBREAPER, 1, 0, 0, 0)
    lifeline = os.dup(0)  # the command gets no input, and no copy of this
    os.set_inheritable(lifeline, False)
    threading.Thread(target=wait_for_end, args=(lifeline, wanted), daemon=True).start()
    with ExitStack() as stack:
        environment = os.environ | own_folder(stack)
        command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, env=environment, preexec_fn=end_with_keeper)
        while not wanted.wait(0.1) and command.poll() is None:
            pass
        end_all(command)
        code = command.wait()
    sys.stdout.flush()
    os._exit(code if code >= 0 else 128 - code)  # the thread still waits for the pipe


def end_with_keeper() -> None:
    """Have the system kill this process when its parent, the keeper, is killed."""
    if PRCTL:
        PRCTL(DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def wait_for_end(lifeline: int, wanted: threading.Event) -> None:
    """Wait until the pipe is closed at its other end."""
    os.read(lifeline, 1)
    wanted.set()


def own_folder(stack: ExitStack) -> dict[str, str]:
    """The environment in which a command has its temporary files in a folder that goes with `stack`; but not what PyTorch compiled.

    Nothing of it where there is no room for a folder, or its name is too long for that of a socket in it.
    """
    try:
        compiled = f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}"  # PyTorch's own choice
        folder = str(stack.enter_context(Scratch()))
    except (OSError, KeyError):
        return {}
    kept = {"TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR", compiled)}
    return {"TMPDIR": folder} | kept if len(folder) <= LONGEST else {}


def end_all(command: subprocess.Popen[bytes]) -> None:
    """Ask every descendant to end, and kill those that have not after GRACE seconds."""
    end = time.monotonic() + GRACE
    asked = psutil.Process().children(recursive=True)
    for process in asked:
        _signal(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        command.wait(GRACE)  # by who started it, or its exit code is lost
    psutil.wait_procs([process for process in asked if process.pid != command.pid], timeout=max(0, end - time.monotonic()))
    for process in psutil.Process().children(recursive=True):
        _signal(process, signal.SIGKILL)


def _signal(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


if __name__ == "__main__":
    main()
