"""How a runtime rounds activations, done to a model in this process.

A server's answers may differ from the model's in FP32 by what this changes, and still be the same model's. How much that is depends on the
model: one with large outliers loses more by 8-bit activations than one without. So no fixed bound serves; the effect is measured on the
very tokens that are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Rounding = Callable[[nn.Module], AbstractContextManager[None]]
"""Within the context that it makes of a model, the model rounds as a runtime does."""

LONG, SHORT = 256, 32  # llama.cpp's Q8_K for rows of K-quants, Q8_0 for all others


def eight_bits(inputs: Tensor) -> Tensor:
    """Activations [..., in] as llama.cpp's kernels take them: integers of 8 bits, a scale for each block of a row (ggml's quantize_row_q8_K
    and quantize_row_q8_0)."""
    size = LONG if inputs.shape[-1] % LONG == 0 else SHORT
    if inputs.shape[-1] % size:
        return inputs
    blocks = inputs.float().unflatten(-1, (-1, size))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    return ((blocks / scale.clamp(min=1e-30)).round() * scale).flatten(-2).to(inputs.dtype)


@contextmanager
def eight_bit_inputs(model: nn.Module) -> Iterator[None]:
    """As llama.cpp multiplies: the inputs of every linear layer in 8 bits."""
    hooks = [
        layer.register_forward_pre_hook(lambda _, given: (eight_bits(given[0]), *given[1:]))
        for layer in model.modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def half_outputs(dtype: torch.dtype) -> Rounding:
    """As vLLM and TGI compute: what every module hands on is in FP16 or BF16."""

    def rounded(given: Any) -> Any:
        if isinstance(given, Tensor):
            return given.to(dtype).to(given.dtype) if given.is_floating_point() else given
        return tuple(map(rounded, given)) if type(given) is tuple else given

    @contextmanager
    def rounding(model: nn.Module) -> Iterator[None]:
        hooks = [part.register_forward_hook(lambda _, inputs, output: rounded(output)) for part in model.modules() if part is not model]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    return rounding
