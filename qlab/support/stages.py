"""Where time goes: seconds of each stage of the work, measured only while somebody asks for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

_asked: ContextVar[Stages | None] = ContextVar("stages", default=None)


@dataclass
class Stages:
    """Seconds by stage, in the order of their first start. A stage inside another one counts for itself alone, so that the sum is
    the whole time within stages."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    _inside: list[str] = field(default_factory=list)
    _since: float = 0.0

    def switch(self) -> None:
        """Count the time since the last switch for the innermost stage, when a GPU has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._inside:
            self.seconds[self._inside[-1]] += now - self._since
        self._since = now

    def start(self, name: str) -> None:
        """Enter a stage."""
        self.switch()
        self.seconds.setdefault(name, 0.0)
        self._inside.append(name)

    def stop(self) -> None:
        """Leave the innermost stage."""
        self.switch()
        self._inside.pop()

    def lines(self) -> list[str]:
        """A line a stage, the longest first: seconds, and the share of all stages."""
        whole = sum(self.seconds.values()) or 1.0
        longest_first = sorted(self.seconds.items(), key=lambda item: -item[1])
        return [f"{name:12} {seconds:8.2f} s {seconds / whole:6.1%}" for name, seconds in longest_first]


@contextmanager
def profiled(device: str) -> Iterator[Stages]:
    """Within the context the stages of this thread are timed. A `device` that is a GPU is waited for at each change of stage, so that the
    whole takes longer than without."""
    stages = Stages(torch.device(device))
    token = _asked.set(stages)
    try:
        yield stages
    finally:
        _asked.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Work that counts as the stage `name`, where somebody asks."""
    stages = _asked.get()
    if stages is None:
        yield
        return
    stages.start(name)
    try:
        yield
    finally:
        stages.stop()
