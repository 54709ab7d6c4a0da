"""The activations between two blocks: in a file, or in the machine's memory with a file written beside the computation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from qlab.support.memory import pinned
from qlab.support.stages import stage

Shape = tuple[int, int, int]


class Batches(Protocol):
    """Inputs of a block, some at a time: float32 [windows, length, hidden], or [tokens, hidden] where single tokens were chosen."""

    def batches(self, size: int) -> Iterator[Tensor]:
        """All of them in turn."""


@dataclass
class Activations:
    """Hidden states float32 [windows, length, hidden] in a file: read and written a few windows at a time, never all in memory."""

    path: Path
    shape: Shape

    def batches(self, size: int) -> Iterator[Tensor]:
        """Through all windows in turn: float32 [≤ size, length, hidden]."""
        for first in range(0, self.shape[0], size):
            with stage("activations"):
                found = self.some(first, min(size, self.shape[0] - first))
            yield found

    def pick(self, windows: Tensor, device: str | torch.device = "cpu") -> Tensor:
        """Some windows on `device`, in the order asked for: float32 [len(windows), length, hidden].

        Each goes there by itself: gathered first, they would lie where a GPU does not copy from without the CPU.
        """
        found = torch.empty((len(windows), *self.shape[1:]), dtype=torch.float32, device=device)
        for place, index in zip(found, windows.tolist(), strict=True):
            place.copy_(self.some(index, 1)[0], non_blocking=True)
        return found

    def some(self, first: int, count: int) -> Tensor:
        """The windows from `first` on: float32 [count, length, hidden]."""
        window = self.shape[1] * self.shape[2]
        values = np.fromfile(self.path, np.float32, count * window, offset=4 * first * window)
        return torch.from_numpy(values).view(count, *self.shape[1:])

    def tokens(self, numbers: Tensor) -> Tensor:
        """Single tokens by their numbers over all windows: float32 [len(numbers), hidden]. Only what is asked for is read."""
        found = np.memmap(self.path, np.float32, "r", shape=(self.shape[0] * self.shape[1], self.shape[2]))
        return torch.from_numpy(found[numbers.numpy()])

    def write(self, batches: Iterator[Tensor]) -> None:
        """Fill the file with the batches in turn."""
        self.path.unlink(missing_ok=True)
        for batch in batches:
            with stage("activations"):
                self.append(batch.float().cpu())

    def put(self, first: int, tokens: Tensor) -> None:
        """Write the tokens from number `first` on, float32 [tokens, hidden]; they come in their order."""
        self.append(tokens.float().cpu())

    def append(self, batch: Tensor) -> None:
        """Write a batch, float32 on the CPU, at the end of the file."""
        with self.path.open("ab") as stream:
            batch.contiguous().numpy().tofile(stream)


class Held(Activations):
    """Activations in memory, from where a GPU or the CPU reads them; where there is a `writer`, it writes the file meanwhile."""

    def __init__(self, path: Path, shape: Shape, writer: Writer | None, device: str) -> None:
        super().__init__(path, shape)
        self.writer = writer
        on_gpu = torch.device(device).type == "cuda"
        self.values = pinned(shape, torch.float32, device) if on_gpu else torch.empty(shape)

    def some(self, first: int, count: int) -> Tensor:
        """The windows from `first` on, a view: float32 [count, length, hidden]."""
        return self.values[first : first + count]

    def tokens(self, numbers: Tensor) -> Tensor:
        """Single tokens by their numbers over all windows: float32 [len(numbers), hidden]."""
        return self.values.view(-1, self.shape[2])[numbers]

    def write(self, batches: Iterator[Tensor]) -> None:
        """Fill the memory with the batches in turn."""
        self.path.unlink(missing_ok=True)
        first, device = 0, None
        for batch in batches:
            with stage("activations"):
                part = self.some(first, len(batch))
                part.copy_(batch, non_blocking=True)
                if self.writer:
                    self.writer.do(self._appending(part, batch))
                first += len(batch)
                device = batch.device
        if device and device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()

    def put(self, first: int, tokens: Tensor) -> None:
        """Write the tokens from number `first` on, float32 [tokens, hidden]."""
        self.values.view(-1, self.shape[2])[first : first + len(tokens)].copy_(tokens)

    def _appending(self, part: Tensor, batch: Tensor) -> Callable[[], None]:
        copied = torch.cuda.current_stream(batch.device).record_event() if batch.is_cuda else None

        def append() -> None:
            if copied:
                copied.synchronize()
            self.append(part)

        return append


class Writer:
    """A thread that does what it is given, one task after another; once a task has failed, it does no other."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "qlab-writer")
        self._given: list[Future[None]] = []
        self._failed = False

    def do(self, task: Callable[[], None]) -> Future[None]:
        """Have `task` done after all that was given before."""
        future = self._thread.submit(self._try, task)
        self._given.append(future)
        return future

    def _try(self, task: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            task()
        except BaseException:
            self._failed = True
            raise

    def busy(self) -> bool:
        """Whether something is left to do.

        Raises:
            OSError: the disk is full or not writable.
        """
        done, self._given = [f for f in self._given if f.done()], [f for f in self._given if not f.done()]
        for future in done:
            future.result()
        return bool(self._given)

    def close(self) -> None:
        """Wait until all is done.

        Raises:
            OSError: the disk is full or not writable.
        """
        self._thread.shutdown(wait=True)
        self.busy()
