"""The checkpoint layouts that grouped integers are stored in: what each holds, how a layer is packed, what its configuration says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from qlab.formats import awq, gptq
from qlab.formats.compressed_tensors import writing as compressed
from qlab.formats.packing import WIDTHS
from qlab.methods.grid import GroupedIntegers
from qlab.recipes.fitting import Unfit


@dataclass(frozen=True)
class Scheme:
    """What a layout has to know of grouped integers. A group size of −1 means the whole row; `scattered`, that g_idx names the groups."""

    bits: int
    group_size: int
    symmetric: bool
    scattered: bool


@dataclass(frozen=True)
class Left:
    """What of a model is not quantized: layers of its blocks (`kept`, beside those `quantized`), and modules `apart` from them."""

    kept: Sequence[str]
    quantized: Sequence[str]
    apart: Sequence[str]


@dataclass(frozen=True)
class Layout:
    """A layout: its name as runtimes know it and as people say it, the widths of its codes in bits, the shapes that it cannot hold, and
    its two functions."""

    format: str
    label: str
    widths: tuple[int, ...]
    unfit: Unfit
    pack: Callable[[GroupedIntegers, Scheme], dict[str, Tensor]]
    configuration: Callable[[Scheme, Left], dict[str, Any]]


AWQ = Layout(
    "awq", "AWQ", (awq.BITS,), awq.unfit, lambda layer, scheme: awq.pack(layer),
    lambda scheme, left: awq.quantization_config(scheme.group_size, ["lm_head", *left.kept, *left.apart]),
)  # fmt: skip
GPTQ = Layout(
    "gptq", "GPTQ", gptq.WIDTHS, gptq.unfit, lambda layer, scheme: gptq.pack(layer),
    lambda scheme, left: gptq.quantization_config(
        scheme.bits, scheme.group_size, scheme.symmetric, scheme.scattered, skipped=left.kept, quantized=left.quantized,
        apart=left.apart,
    ),
)  # fmt: skip
COMPRESSED = Layout(
    "compressed-tensors", "compressed-tensors", WIDTHS, compressed.unfit, lambda layer, scheme: compressed.pack(layer, scheme.symmetric),
    lambda scheme, left: compressed.quantization_config(
        compressed.integers(scheme.bits, scheme.group_size, scheme.symmetric, scheme.scattered), None, left.kept, left.apart
    ),
)  # fmt: skip
W8A8 = Layout(
    "compressed-tensors", "compressed-tensors INT8", (8,), lambda outputs, inputs: "", lambda layer, scheme: compressed.pack_int8(layer),
    lambda scheme, left: compressed.quantization_config(
        compressed.integers(8, -1, True, False), compressed.BY_TOKEN, left.kept, left.apart
    ),
)  # fmt: skip
W8A8_STATIC = replace(W8A8, label="compressed-tensors INT8, static", configuration=lambda scheme, left: compressed.quantization_config(
    compressed.integers(8, -1, True, False), compressed.BY_TENSOR, left.kept, left.apart
))  # fmt: skip
LAYOUTS = {layout.format: layout for layout in (AWQ, GPTQ, COMPRESSED)}
