"""The processes that qlab.support.processes.process has started for a process and that live."""

from __future__ import annotations

from contextlib import suppress

import psutil


def isolated(parent: int | None = None) -> list[psutil.Process]:
    """Those of `parent`, or of this process: on Linux they are children of the process that they are copies of, elsewhere its own."""
    found: list[psutil.Process] = []
    for child in psutil.Process(parent).children():
        with suppress(psutil.NoSuchProcess):
            words = " ".join(child.cmdline())
            found += child.children() if "forkserver" in words else [child] if "spawn_main" in words else []
    return [each for each in found if lives(each)]


def lives(process: psutil.Process) -> bool:
    """Whether the process computes or waits, and is not only remembered."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
