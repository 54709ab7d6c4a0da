"""A walk on one device or on several, a process for each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qlab.models.opening import OpenedModel
from qlab.support.processes.process import Isolated, called_once, peak_bytes
from qlab.support.progress import counter
from qlab.walk.state.journal import Journal
from qlab.walk.state.share import Share
from qlab.walk.walk import Method, Walk

POLL = 0.5  # seconds between two looks at how far the devices are, for which their journals are read


@dataclass(frozen=True)
class Walked:
    """What a walk found, and the memory in bytes that its processes held at their peaks, together."""

    journal: Journal
    peak_bytes: int


def walk_on(
    devices: Sequence[str], source: OpenedModel, methods: Sequence[Method], windows: Tensor, work: Path, batch: int | None = None
) -> Walked:
    """Walk over `source`, its blocks shared out over `devices` (qlab.walk.state.share); the encoded parts lie in `work` then.

    Interrupted, the same call goes on; on another number of devices it starts again. The bytes are those of a walk on one device.

    Raises:
        UserError: what the walk raises on any of the devices; the others finish first, and keep what they have done.
    """
    if len(devices) == 1:
        return Walked(Walk(source, methods, windows, work, batch, devices[0]).run(), peak_bytes())
    count = source.layout.count
    walks = [Walk(source, methods, windows, work, batch, device, Share(rank, len(devices))) for rank, device in enumerate(devices)]
    walks = [walk for walk in walks if walk.share.rank == 0 or walk.share.works(methods, count)]  # the first keeps embedding and head
    paths = [walk.state / "journal.json" for walk in walks]
    with ExitStack() as stack, counter(len(walks) * count, 0, "quantizing") as step:
        running = [stack.enter_context(Isolated(called_once, run, (walk,), name="the walk")) for walk in walks]
        done = 0
        while not all(process.ready(POLL) for process in running):
            blocks = sum(Journal.open(path).blocks for path in paths)
            for _ in range(blocks - done):
                step(f"on {len(walks)} devices", {})
            done = max(done, blocks)
        peaks = [process.next().peak_bytes for process in running]
    prefixes = [source.layout.block(index) for index in range(count)]
    return Walked(Journal.merged([Journal.open(path) for path in paths], prefixes), sum(peaks))


def run(walk: Walk) -> None:
    """Run one device's share in this process."""
    if torch.device(walk.device).type == "cuda":
        torch.cuda.set_device(walk.device)
    walk.run()
