"""A job on a machine of a Ray cluster: what runs there, in a worker of Ray's."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from qlab.support.disk.scratch import Scratch
from qlab.support.versions import version_of
from qlab.sweep.workers.kept import Kept
from qlab.sweep.workers.workers import Ended

PAUSE = 0.1  # seconds between two looks at the process


class Started(NamedTuple):
    """A job has come to the machine `node`, called `where`; it does not run there where there is a `refusal`."""

    node: str
    where: str
    refusal: str = ""


def run_job(words: Sequence[str], threads: int, lock: str, owner: str, versions: Mapping[str, str]) -> Iterator[Started | Ended]:
    """Run `qlab` with these words in a process that ends with this one: yields where it runs, and then how it ended; on a machine that
    cannot take part, where it is and why it does not run there, and nothing else.

    `lock` is the file that the driver of the sweep holds, and `owner` what stands in it: it tells who has the same disk. `versions`: of the
    driver's libraries, by their names.
    """
    import ray

    node = ray.get_runtime_context().get_node_id()
    where, reason = f"{socket.gethostname()} {node[:6]}", elsewhere(Path(lock), owner) or unlike(versions)
    yield Started(node, where, reason)
    if reason:
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


def elsewhere(lock: Path, owner: str) -> str:
    """Why this machine cannot take part in the sweep, if it has another disk; empty where it has the same."""
    with suppress(OSError):
        if lock.read_text(errors="replace") == owner:
            return ""
    return f"{socket.gethostname()} does not see the folder {lock.parent} of this sweep: give an --out on a disk that all machines share"


def unlike(versions: Mapping[str, str]) -> str:
    """Why results of this machine would not be those of the others; empty where it has the same versions, built for a GPU or not."""
    here = {name: version_of(name) for name in versions}
    other = [f"{name} {here[name]} in place of {wanted}" for name, wanted in versions.items() if public(here[name]) != public(wanted)]
    return f"{socket.gethostname()} has {', '.join(other)}: make the environment there from the same checkout" if other else ""


def public(version: str) -> str:
    """A version without what it was built for: 2.13.0 of 2.13.0+cpu."""
    return version.partition("+")[0]
