"""What a model predicts of some windows, computed with one of its blocks in memory: a model that is larger than memory can be judged.

All windows go through a block before the next one is read. What is kept is the last block's output, on the disk; a window's logits are made
of it when they are asked for, so that no more than one window's are in memory. Windows may be of different lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qlab.formats.compressed_tensors.rounding import round_inputs
from qlab.models.configuration import quantization_of
from qlab.models.loading import load_and_rest
from qlab.models.opening import OpenedModel
from qlab.support.disk.scratch import Scratch
from qlab.support.processes.process import trim_heap
from qlab.support.progress import progress
from qlab.walk.skeleton import Skeleton
from qlab.walk.state.activations import Activations
from qlab.walk.tail import Tail, exact

Windows = Tensor | Sequence[Tensor]
"""int64 [windows, length]; or [1, length] each, whose lengths may differ."""

LARGE = 1_000_000_000  # bytes of weights in FP32, beyond which a model that only predicts is never whole in memory


def held_whole(source: OpenedModel, wanted: bool = False) -> bool:
    """Whether a model that predicts is whole in memory: where that is `wanted`, it is not LARGE, or cannot be run block by block."""
    return wanted or 4 * source.layout.weights <= LARGE or bool(source.not_walked)


def predictor(
    source: OpenedModel, windows: Windows, device: str, place: Path | None = None, whole: bool = False
) -> tuple[PreTrainedModel | BlockByBlock, list[str]]:
    """What predicts the next tokens of `windows`, in FP32: the model where it is wanted `whole` or `held_whole` says so, else its blocks
    one after the other, below `place`. And the names of tensors in its checkpoint that the model does not have.

    Raises:
        UserError: as qlab.models.loading.load.
        OSError: as BlockByBlock.
    """
    if held_whole(source, whole):
        return load_and_rest(source, torch.float32, device)
    return BlockByBlock(source, windows, device, place), source.check_complete()


class BlockByBlock(Sequence[Tensor]):
    """The logits of each window but for its last position, float32 [length − 1, vocabulary], in the model's FP32 arithmetic."""

    @torch.no_grad()
    def __init__(
        self, source: OpenedModel, windows: Windows, device: str = "cpu", place: Path | None = None,
        rounding: Callable[[nn.Module], AbstractContextManager[None]] = exact,
    ) -> None:  # fmt: skip
        """Run the windows through the model's blocks.

        Args:
            place: the folder below which hidden states are kept; else among the system's temporary files.
            rounding: within the context that it makes of the model, this computes as a runtime does (qlab.serve.rounding).

        Raises:
            UserError: the checkpoint is not complete or damaged, or qlab does not know how it rounds activations.
            OSError: the disk is full or not writable.
        """
        self._skeleton, self._rounding, self._scratch = Skeleton(source, device), rounding, Scratch(place)
        single = list(windows.split(1)) if isinstance(windows, Tensor) else list(windows)
        self._lengths = [window.shape[1] for window in single]
        self._places, counts = list[int](), dict[int, int]()  # of each window among those of its length
        for length in self._lengths:
            self._places.append(counts.setdefault(length, 0))
            counts[length] += 1
        if (quantization := quantization_of(source.config)).get("quant_method") == "compressed-tensors":
            layers = (name.removesuffix(".weight") for name in source.checkpoint.quantized_names())
            round_inputs(self._skeleton.model, quantization, layers, source.name, source.checkpoint.input_scale)
        self._tail = Tail(self._skeleton)
        with rounding(self._skeleton.model):
            self._hidden = self._through_blocks(source.name, single, counts)
        self._tail.fill()

    def __len__(self) -> int:
        return len(self._lengths)

    @torch.inference_mode()
    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        hidden = self._hidden[self._lengths[index]].some(self._places[index], 1).to(self._skeleton.device)
        return self._tail.logits(hidden, self._rounding)[:-1]

    def _through_blocks(self, name: str, windows: Sequence[Tensor], counts: Mapping[int, int]) -> dict[int, Activations]:
        """What the last block makes of the windows, by their length, of which there are so many of each."""
        skeleton, width = self._skeleton, self._skeleton.layout.hidden
        hidden = self._files(counts, width, 0)
        by_length = {length: [window for window in windows if window.shape[1] == length] for length in counts}
        skeleton.embed_each([(group, hidden[length]) for length, group in by_length.items()])
        skeleton.learn_arguments(list(counts))
        for index in progress(range(len(skeleton)), f"blocks of {name}", leave=False):
            block = skeleton.block(index, next(iter(counts)))
            skeleton.read_ahead(index + 1)
            hook = block.module.register_forward_hook(self._tail.note)
            outputs = self._files(counts, width, index + 1)
            for length, inputs in hidden.items():
                called = replace(block, arguments=skeleton.called(index, length))
                outputs[length].write(called.outputs(inputs, 1))  # a window at a time, as the whole model computes them: the same bits
                inputs.path.unlink()
            hook.remove()
            skeleton.release(index)
            trim_heap()
            hidden = outputs
        skeleton.close()
        return hidden

    def _files(self, counts: Mapping[int, int], width: int, index: int) -> dict[int, Activations]:
        """Files for the inputs of block `index`, by the windows' length."""
        folder = self._scratch.path
        return {length: Activations(folder / f"hidden-{index}-{length}.bin", (count, length, width)) for length, count in counts.items()}
