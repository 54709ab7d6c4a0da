"""A server's keeper: run as a program, it starts a command and sees to it that nothing of it outlives whoever wanted it.

It ends the command, and all that this has started, when its standard input closes: that is a pipe to the process that wants
the server, and closes however that process ends. Orphans fall to the keeper, not to the system, so none escapes it. Temporary files
it has in a folder of its own, which goes with it: vLLM leaves sockets and more behind at every start.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress

import psutil

GRACE = 8  # seconds between asking and killing
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of <linux/prctl.h>


def main() -> None:
    """Run the command in the arguments; the exit code is its own."""
    wanted = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: wanted.set())
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    lifeline = os.dup(0)  # the command gets no input, and no copy of this
    os.set_inheritable(lifeline, False)
    threading.Thread(target=wait_for_end, args=(lifeline, wanted), daemon=True).start()
    with tempfile.TemporaryDirectory(prefix="qlab-", ignore_cleanup_errors=True) as folder:
        command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, env=os.environ | {"TMPDIR": folder})
        while not wanted.wait(0.1) and command.poll() is None:
            pass
        end_all()
        code = command.wait()
    sys.stdout.flush()
    os._exit(code if code >= 0 else 128 - code)  # the thread still waits for the pipe


def wait_for_end(lifeline: int, wanted: threading.Event) -> None:
    """Wait until the pipe is closed at its other end."""
    os.read(lifeline, 1)
    wanted.set()


def end_all() -> None:
    """Ask every descendant to end, and kill those that have not after GRACE seconds."""
    asked = psutil.Process().children(recursive=True)
    for process in asked:
        _signal(process, signal.SIGTERM)
    psutil.wait_procs(asked, timeout=GRACE)
    for process in psutil.Process().children(recursive=True):
        _signal(process, signal.SIGKILL)


def _signal(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


if __name__ == "__main__":
    main()
