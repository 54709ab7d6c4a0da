"""All activations that a walk keeps: of the original model, and of each recipe that sees what its own quantized blocks make.

An interrupted walk goes on from their files. Beside a GPU they are held in memory while they fit, and a thread writes the files. A block
that comes while the files of an earlier one are still being written gets none: the walk then goes on from the last block that has them,
and does the blocks after it again, with the same bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor

from qlab.support.memory import pinned
from qlab.support.stages import stage
from qlab.walk.state.activations import Activations, Held, Shape, Writer

SHARE = 0.5  # of the machine's free memory that activations may take
PARTS = 4  # encoded parts that wait in memory until they are written
GENERATIONS = 3  # that are there at once: a block's inputs, its outputs, and those whose file is still being written


def held(shape: Shape, streams: int, device: str) -> bool:
    """Whether so many streams are held in memory: beside an NVIDIA GPU, which waits for files, and where they fit."""
    size = 4 * shape[0] * shape[1] * shape[2] * streams * GENERATIONS
    return torch.device(device).type == "cuda" and size <= SHARE * psutil.virtual_memory().available


def on_host(tensor: Tensor) -> Tensor:
    """The tensor in the machine's memory; of one on a GPU a copy that is there when the GPU has come so far."""
    if not tensor.is_cuda:
        return tensor
    return pinned(tensor.shape, tensor.dtype, tensor.device).copy_(tensor, non_blocking=True)


class Streams:
    """Activations by stream and block, in the folder `work`; `hold`: in memory too, for the `device`."""

    def __init__(self, work: Path, shape: Shape, hold: bool, device: str = "cpu") -> None:
        self.work, self.shape, self.device = work, shape, device
        self.writer = Writer() if hold else None
        self._held: dict[tuple[str, int], Held] = {}
        self._filed: dict[int, bool] = {}
        self._parts: deque[Future[None]] = deque()

    def of(self, name: str, index: int) -> Activations:
        """The inputs of block `index` in the stream `name`, as they are there."""
        return self._held.get((name, index)) or Activations(self._path(name, index), self.shape)

    def has(self, name: str, index: int) -> bool:
        """Whether that stream has inputs of block `index`."""
        return (name, index) in self._held or self._path(name, index).exists()

    def new(self, name: str, index: int) -> Activations:
        """Where inputs of block `index` are to be written."""
        if not self.writer:
            return Activations(self._path(name, index), self.shape)
        filed = self._filed.setdefault(index, not self.writer.busy())
        found = self._held[name, index] = Held(self._path(name, index), self.shape, self.writer if filed else None, self.device)
        return found

    def passing(self, name: str, index: int, width: int) -> Activations:
        """Where activations `width` wide within block `index` are to be written, which no other run goes on from."""
        shape = (self.shape[0], self.shape[1], width)
        return Held(self._path(name, index), shape, None, self.device) if self.writer else Activations(self._path(name, index), shape)

    def save_part(self, tensors: dict[str, Tensor], path: Path) -> None:
        """Write encoded tensors to the safetensors file `path`, which is whole or not there.

        Raises:
            OSError: the disk is full or not writable.
        """
        ready = {name: on_host(tensor.contiguous()) for name, tensor in tensors.items()}
        copied = [torch.cuda.current_stream(device).record_event() for device in {t.device for t in tensors.values() if t.is_cuda}]

        def save() -> None:
            for event in copied:
                event.synchronize()
            save_file(ready, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)

        if not self.writer:
            save()
            return
        self._parts.append(self.writer.do(save))
        if len(self._parts) > PARTS:
            self._parts.popleft().result()

    def finish(self, index: int, save: Callable[[], None], last: bool = False) -> None:
        """Block `index` is done: `save` that, once the inputs of the next one lie in their files, and forget its own.

        The `last` block has no next one.

        Raises:
            OSError: the disk is full or not writable.
        """
        for name, block in list(self._held):
            if block <= index:
                del self._held[name, block]

        def settle() -> None:
            save()
            for path in self.work.glob("*.bin"):
                if int(path.stem.rpartition("-")[2]) <= index:
                    path.unlink()

        if not self.writer:
            settle()
        elif last or self._filed.get(index + 1, True):
            self.writer.do(settle)

    def close(self) -> None:
        """Wait until all is in its file.

        Raises:
            OSError: the disk is full or not writable.
        """
        if self.writer:
            with stage("wait to write"):
                self.writer.close()

    def _path(self, name: str, index: int) -> Path:
        return self.work / f"{name}-{index}.bin"
