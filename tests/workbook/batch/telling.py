"""A process that tells where it comes from, and waits: it imports nothing that takes long."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path


def waits(folder: str) -> None:
    """Tell of this process and those that it comes from, and wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    Path(folder, "telling").write_text(f"{os.getppid()} {parent.pid} {os.getpid()}")
    Path(folder, "telling").rename(Path(folder, "told"))
    time.sleep(3600)
