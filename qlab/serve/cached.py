"""How a KV cache of fewer bits rounds keys and values, done to a model in this process.

transformers hands every attention layer's keys, already turned by their positions, and values to a cache, and attends to what comes back:
there they are rounded, as a runtime rounds what it stores. Whatever the family, one place serves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedConfig

from qlab.serve.rounding import Rounding
from qlab.support.errors import UserError

BLOCK = 32  # numbers that share a scale in ggml's Q8_0 and Q4_0
SMALLEST_TURN = 64  # llama.cpp turns heads of whole multiples of this, values in pieces of just this length
Kept = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(keys, values) [sequences, heads, tokens, head size] → what a cache gives back of them."""


def in_blocks(numbers: Tensor) -> Tensor:
    """Numbers [..., n] as float32 [..., n / BLOCK, BLOCK].

    Raises:
        UserError: BLOCK does not divide n.
    """
    if numbers.shape[-1] % BLOCK:
        raise UserError(
            f"attention heads of {numbers.shape[-1]} numbers: llama.cpp keeps a KV cache of 8 or 4 bits in blocks of {BLOCK}, which do not "
            "divide them; keep it in f16"
        )
    return numbers.float().unflatten(-1, (-1, BLOCK))


def q8_0(numbers: Tensor) -> Tensor:
    """Numbers [..., n] as ggml's Q8_0 holds them: blocks of BLOCK, the largest at ±127, the scale in FP16 (quantize_row_q8_0_ref)."""
    blocks = in_blocks(numbers)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    steps = blocks * torch.where(scale == 0, 0.0, 1 / scale)
    whole = steps.abs().floor()
    codes = (whole + (2 * (steps.abs() - whole)).floor()).copysign(steps)  # halves away from zero
    return (codes * scale.half().float()).flatten(-2).to(numbers.dtype)


def q4_0(numbers: Tensor) -> Tensor:
    """Numbers [..., n] as ggml's Q4_0 holds them: blocks of BLOCK in steps −8 … 7, of which −8 is the largest of them, whatever its sign;
    the scale in FP16 (quantize_row_q4_0_ref)."""
    blocks = in_blocks(numbers)
    scale = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)) / -8
    steps = blocks.double() * torch.where(scale == 0, 0.0, 1 / scale).double() + 8.5
    return ((steps.trunc().clamp(0, 15).float() - 8) * scale.half().float()).flatten(-2).to(numbers.dtype)


def fp8(numbers: Tensor) -> Tensor:
    """Numbers as vLLM keeps them in an FP8 cache without scales: E4M3."""
    largest = torch.finfo(torch.float8_e4m3fn).max
    return numbers.clamp(-largest, largest).to(torch.float8_e4m3fn).to(numbers.dtype)


def turned(numbers: Tensor, size: int) -> Tensor:
    """Numbers [..., n] times the Hadamard matrix of `size`, a power of two that divides n, piece by piece; once more, they are back."""
    pieces = numbers.float().unflatten(-1, (-1, size))
    half = 1
    while half < size:
        first, second = pieces.unflatten(-1, (-1, 2, half)).unbind(-2)
        pieces = torch.stack((first + second, first - second), -2).flatten(-3)
        half *= 2
    return (pieces * size**-0.5).flatten(-2).to(numbers.dtype)


def as_llamacpp(rounding: Callable[[Tensor], Tensor]) -> Kept:
    """llama.cpp turns heads by a Hadamard matrix before it rounds them, which spreads outliers, and queries and outputs likewise, so that
    nothing else changes (its llama-kv-cache.cpp; LLAMA_ATTN_ROT_DISABLE switches it off): keys in the largest pieces that divide a head,
    values in pieces of SMALLEST_TURN; heads of other sizes not at all."""

    def kept(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        whole = keys.shape[-1] % SMALLEST_TURN == 0
        largest = keys.shape[-1] & -keys.shape[-1]  # the largest power of two that divides it
        of_keys = turned(rounding(turned(keys, largest)), largest) if whole else rounding(keys)
        whole = values.shape[-1] % SMALLEST_TURN == 0
        return of_keys, turned(rounding(turned(values, SMALLEST_TURN)), SMALLEST_TURN) if whole else rounding(values)

    return kept


KEPT: dict[str, Kept] = {  # by the names of qlab.plan.plan.CACHES
    "q8_0": as_llamacpp(q8_0),
    "q4_0": as_llamacpp(q4_0),
    "fp8": lambda keys, values: (fp8(keys), fp8(values)),
}


class RoundedCache(DynamicCache):
    """A cache for one text, computed in one go, that rounds what it is given."""

    def __init__(self, config: PreTrainedConfig, kept: Kept) -> None:
        super().__init__(config=config)
        self.kept = kept

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **more: Any) -> tuple[Tensor, Tensor]:
        """What attention gets back of a layer's keys and values."""
        return super().update(*self.kept(key_states, value_states), layer_idx, *args, **more)


def with_cache(rounding: Rounding, cache: str) -> Rounding:
    """A runtime's rounding, and keys and values rounded as its KV cache keeps them (of qlab.plan.plan.CACHES). Where whoever calls the
    model brings a cache, that one is used as it is.

    Raises within the context:
        UserError: heads that such a cache cannot hold.
    """
    if cache == "f16":
        return rounding

    @contextmanager
    def both(model: nn.Module) -> Iterator[None]:
        def given(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            config: Any = model.config
            known: Cache | None = named.get("past_key_values")
            made = RoundedCache(config, KEPT[cache]) if known is None else known
            return inputs, named | {"past_key_values": made, "use_cache": True}

        hook = model.register_forward_pre_hook(given, with_kwargs=True)
        try:
            with rounding(model):
                yield
        finally:
            hook.remove()

    return both
