"""What the nodes of a Ray cluster on this machine work at, and what memory their jobs hold."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

from tests.sweep.workers.nodes import Nodes

LOOK = 0.3  # seconds between two looks at the nodes


@dataclass
class Watch:
    """What the jobs of each node held together, and how many there were at once, at most."""

    nodes: Nodes
    bytes: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    jobs: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def look(self) -> None:
        for number, raylet in enumerate(self.nodes.raylets()):
            found = jobs_below(raylet)
            held = 0
            for each in {process for top in found for process in (top, *children(top))}:
                try:
                    held += each.memory_full_info().pss
                except psutil.Error:
                    continue
            self.bytes[number], self.jobs[number] = max(self.bytes[number], held), max(self.jobs[number], len(found))


def children(process: psutil.Process) -> list[psutil.Process]:
    """All processes below one; none of one that is gone."""
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def jobs_below(raylet: psutil.Process) -> list[psutil.Process]:
    """The jobs of a node: qlab's own process of each."""
    return [process for process in children(raylet) if words(process)[1:3] == ["-m", "qlab"]]


@contextmanager
def watching(nodes: Nodes) -> Iterator[Watch]:
    """Look at the nodes all the while."""
    watch, ended = Watch(nodes), threading.Event()

    def look() -> None:
        while not ended.wait(LOOK):
            watch.look()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()


def words(process: psutil.Process) -> list[str]:
    """The words that a process was started with; none of one that is gone."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []
