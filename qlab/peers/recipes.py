"""The peers' recipes: other libraries' methods and their options, frozen, behind the same call as qlab's own (qlab.recipes)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from qlab.formats.gguf.encoding import Encoder
from qlab.models.opening import OpenedModel
from qlab.peers import elsewhere, llamacpp
from qlab.peers.elsewhere import AUTO_ROUND, LLM_COMPRESSOR
from qlab.recipes import GGUF, Details, Recipe
from qlab.recipes.gguf import Search
from qlab.support.errors import UserError
from qlab.walk.statistics import Statistics


@dataclass(frozen=True)
class AutoAWQ(Recipe):
    """The guide's AWQ recipe, by the AutoAWQ library: 4 bits, zero points, GEMM layout."""

    group_size: int = 128

    @property
    def name(self) -> str:
        return f"autoawq-w4g{self.group_size}"

    def check(self, source: OpenedModel) -> None:
        from qlab.peers import autoawq

        autoawq.check(source)

    def quantize(self, source: OpenedModel, windows: Tensor, out: Path, device: str) -> Details:
        from qlab.peers import autoawq

        autoawq.quantize(source, windows, out, self.group_size)
        return {}


@dataclass(frozen=True)
class AutoGPTQ(Recipe):
    """GPTQ by the AutoGPTQ library. The default serves everywhere; the guide's asks for `symmetric=False, act_order=True`."""

    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    act_order: bool = False

    @property
    def name(self) -> str:
        return f"autogptq-w{self.bits}g{self.group_size}{'' if self.symmetric else '-asym'}{'-actorder' if self.act_order else ''}"

    def check(self, source: OpenedModel) -> None:
        from qlab.peers import autogptq

        autogptq.check(source)

    def quantize(self, source: OpenedModel, windows: Tensor, out: Path, device: str) -> Details:
        from qlab.peers import autogptq

        autogptq.quantize(source, windows, out, self.bits, self.group_size, self.symmetric, self.act_order)
        return {}


@dataclass(frozen=True)
class BitsAndBytes(Recipe):
    """4-bit NormalFloat (or FP4, its control) by bitsandbytes; blocks of 64, absmax quantized again when doubled."""

    kind: str = "nf4"
    double_quantization: bool = True

    @property
    def name(self) -> str:
        return f"bitsandbytes-{self.kind}{'-double' if self.double_quantization else ''}"

    def check(self, source: OpenedModel) -> None:
        from qlab.peers import bitsandbytes

        bitsandbytes.check(source)

    def quantize(self, source: OpenedModel, windows: Tensor, out: Path, device: str) -> Details:
        from qlab.peers import bitsandbytes

        bitsandbytes.quantize(source, out, self.kind, self.double_quantization)
        return {"data": False}


class Elsewhere(Recipe):
    """A method of a library that lies in an environment of its own; its fields are the library's options."""

    library: ClassVar[str]

    def versions(self) -> dict[str, str]:
        return elsewhere.versions(self.library)

    def check(self, source: OpenedModel) -> None:
        elsewhere.check(self.library, source)

    def quantize(self, source: OpenedModel, windows: Tensor, out: Path, device: str) -> Details:
        return elsewhere.quantize(self.library, source, windows, out, device, **asdict(self))  # type: ignore[call-overload]


@dataclass(frozen=True)
class AutoRound(Elsewhere):
    """Rounding tuned by signed gradients by the AutoRound library, in GPTQ's layout; `iterations` are its gradient steps a block."""

    library: ClassVar[str] = AUTO_ROUND

    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    iterations: int = 200

    @property
    def name(self) -> str:
        steps = "" if self.iterations == AutoRound.iterations else f"-steps{self.iterations}"
        return f"autoround-w{self.bits}g{self.group_size}{'' if self.symmetric else '-asym'}{steps}"


@dataclass(frozen=True)
class LLMCompressor(Elsewhere):
    """GPTQ by llm-compressor, which replaced AutoGPTQ, in compressed-tensors: symmetric, act-order without scattered groups.

    With `smooth` it scales channels by SmoothQuant before and stores weights in 8 bits a row; activations are rounded to 8 bits by token.
    """

    library: ClassVar[str] = LLM_COMPRESSOR

    bits: int = 4
    group_size: int = 128
    smooth: bool = False

    def __post_init__(self) -> None:
        if self.smooth and self.bits != 8:
            raise UserError(f"SmoothQuant is for weights and activations in 8 bits, not {self.bits}: say bits=8")

    @property
    def name(self) -> str:
        return "llmcompressor-smooth-gptq-w8a8" if self.smooth else f"llmcompressor-gptq-w{self.bits}g{self.group_size}"


@dataclass(frozen=True)
class LlamaCpp(GGUF):
    """llama.cpp's own quantizer in qlab's walk: the same mix and file, the blocks by ggml_quantize_chunk; it cannot settle."""

    search: Search = "plain"

    def __post_init__(self) -> None:
        if self.search == "settled":
            raise UserError("llama.cpp's quantizer searches plainly or by importance; only qlab's settles")

    @property
    def name(self) -> str:
        return f"llamacpp-{self.mix}{self.options}{'-importance' if self.search == 'importance' else ''}"

    def encodes(self, source: OpenedModel, name: str) -> bool:
        """Not where a GPU is: llama.cpp's quantizer computes on the CPU."""
        return False

    def encoder(self, seen: Statistics | None) -> Encoder:
        return llamacpp.encode_rows
