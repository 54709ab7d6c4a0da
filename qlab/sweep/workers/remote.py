"""A job on a machine of a Ray cluster: what runs there, in a worker of Ray's."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from qlab.support.disk.scratch import Scratch
from qlab.sweep.workers.kept import Kept
from qlab.sweep.workers.workers import Ended

PAUSE = 0.1  # seconds between two looks at the process


def run_job(words: Sequence[str], threads: int, lock: str, owner: str) -> Iterator[str | Ended]:
    """Run `qlab` with these words in a process that ends with this one: yields where it runs, and then how it ended.

    `lock` is the file that the driver of the sweep holds, and `owner` what stands in it: a machine that does not see it has another disk.
    """
    import ray

    yield f"{socket.gethostname()} {ray.get_runtime_context().get_node_id()[:6]}"
    if (reason := elsewhere(Path(lock), owner)) is not None:
        yield Ended(2, 0.0, "", f"error: {reason}")
        return
    with Scratch() as logs:
        started = Kept.start(words, threads, logs, "job")
        try:
            while (ended := started.ended()) is None:
                time.sleep(PAUSE)
            yield ended
        finally:  # cancelled, or the driver is gone
            if started.ended() is None:
                started.cancel()
                started.stop()
            started.forget()


def elsewhere(lock: Path, owner: str) -> str | None:
    """Why this machine cannot take part in the sweep; None where it can."""
    try:
        if lock.read_text(errors="replace") == owner:
            return None
    except OSError:
        pass
    return f"{socket.gethostname()} does not see the folder {lock.parent} of this sweep: give an --out on a disk that all machines share"
