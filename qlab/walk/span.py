"""How large a model's numbers get: whether it runs in FP16, whose largest number is 65504, or wants BF16.

Beyond it a runtime gets infinity, then NaN, and answers "!!!!". Models trained in BF16 can be such (Gemma 3, some Qwen2).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from qlab.walk.block import Block

FP16_LARGEST = 65504.0
MARGIN = 2.0  # other text reaches further than the calibration text, and so do sums that no layer reads


def overflows(largest: float) -> bool:
    """Whether a model whose largest number is known to be `largest` may leave FP16's range."""
    return largest * MARGIN > FP16_LARGEST


class Largest:
    """The largest absolute value of the tensors that were shown to it. No memory is taken, and no GPU is waited for until `value`."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._value = torch.zeros((), device=device)

    @property
    def value(self) -> float:
        return float(self._value)

    def see(self, tensor: Tensor) -> None:
        """Take in a tensor of any shape and dtype; experts that got no token have none."""
        if tensor.numel():
            low, high = torch.aminmax(tensor.detach())
            self._value = torch.maximum(self._value, torch.maximum(-low.float(), high.float()))


@contextmanager
def watched(block: Block, output: bool = False, largest: Largest | None = None) -> Iterator[Largest]:
    """Within the context, every forward pass through the block adds its activations to the largest value that is yielded, or to `largest`.

    These are what the block and its layers read, and what the layers write. The last layers' sum, the block's output, is the next
    block's input; it is added where `output` says so, which the last block needs.
    """
    largest = largest or Largest(block.device)

    def reads(_: Any, inputs: tuple[Tensor, ...]) -> None:
        largest.see(inputs[0])

    def writes(_: Any, inputs: Any, outputs: Any) -> None:
        largest.see(outputs[0] if isinstance(outputs, tuple) else outputs)

    hooks = [block.module.register_forward_pre_hook(reads)]
    hooks += [block.layer(group.layers[0]).register_forward_pre_hook(reads) for group in block.groups]
    hooks += [block.layer(name).register_forward_hook(writes) for group in block.groups[:-1] for name in group.layers]
    hooks += [block.module.register_forward_hook(writes)] if output else []
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()
