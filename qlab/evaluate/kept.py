"""What is computed once and kept: in memory while it is little, else in a file. Above all the reference's logits.

A lesson holds dozens of models against one reference on the same windows. Without this each of them costs a forward pass of the reference.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from qlab.artifacts.budget import too_little
from qlab.support.disk.scratch import Scratch
from qlab.support.errors import UserError
from qlab.support.wording import counted

IN_MEMORY = 512 << 20  # bytes
Predictor = nn.Module | Sequence[Tensor]
"""A model, or its next_token_logits for each of the windows at hand (kept_logits, qlab.walk.by_block)."""

SPARE = 1.1  # times the file's size must be free on the disk: it is written once, and a little is left to others


class Filed(Sequence[Tensor]):
    """Tensors float32 [rows, columns] in a file of a temporary folder, read one at a time onto the CPU; it goes with this object."""

    def __init__(self, tensors: Iterator[Tensor], place: Path | None = None) -> None:
        """Write them below `place`.

        Raises:
            OSError: the disk is full or not writable.
        """
        self._scratch, self._shapes = Scratch(place), list[tuple[int, ...]]()
        with self._file.open("wb") as stream:
            for tensor in tensors:
                tensor.float().cpu().numpy().tofile(stream)
                self._shapes.append(tuple(tensor.shape))
                del tensor  # before the next one is made

    @property
    def _file(self) -> Path:
        return self._scratch.path / "tensors.bin"

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        rows, columns = self._shapes[index]
        first = sum(above * across for above, across in self._shapes[:index])
        # Mapped, not read: what is in the system's cache is used where it lies. Copy on write, since a tensor must be writable.
        values = np.memmap(self._file, np.float32, "c", 4 * first, (rows * columns,))
        return torch.from_numpy(values).view(rows, columns)


def next_token_logits(model: nn.Module, window: Tensor) -> Tensor:
    """Logits for positions 1 … of one window, int64 [1, length] → float32 [length − 1, vocabulary]."""
    device = next(model.parameters()).device
    return model(input_ids=window.to(device), use_cache=False).logits[0, :-1].float()


@torch.inference_mode()
def kept_logits(model: nn.Module, windows: Sequence[Tensor], place: Path | None = None) -> Sequence[Tensor]:
    """The model's next_token_logits for every window, that others be held against: many of them in a file below `place`, or among the
    system's temporary files.

    Raises:
        UserError: the disk has no room for that.
    """
    size = 4 * sum(window.numel() for window in windows) * model.config.get_text_config().vocab_size  # type: ignore[operator, union-attr]
    logits = (next_token_logits(model, window) for window in windows)
    return kept(logits, size, f"the reference's predictions for {counted(len(windows), 'window')}", place)


def kept(tensors: Iterator[Tensor], size: int, what: str, place: Path | None = None) -> Sequence[Tensor]:
    """Tensors float32 [rows, columns] that are made one after the other, of so many bytes in all: many of them in a file below `place`, or
    among the system's temporary files, from where they come onto the CPU. `what` a message calls them.

    Raises:
        UserError: the disk has no room for that.
    """
    if size <= IN_MEMORY:
        return list(tensors)
    folder = place or Path(tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    if lacking := too_little(SPARE * size, shutil.disk_usage(folder).free, "of disk", f"in {folder}"):
        raise UserError(
            f"no room for {what}: {lacking} ({SPARE} times their size must be free). Make room, or take fewer or shorter windows"
        )
    return Filed(tensors, place)


def logits_of(predictor: Predictor, index: int, window: Tensor) -> Tensor:
    """What a model predicts of the window at `index`, or what is kept or made of it by blocks."""
    return next_token_logits(predictor, window) if isinstance(predictor, nn.Module) else predictor[index]
