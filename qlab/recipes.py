"""Recipes: a method and its options, frozen. Each knows its short name and how to make its checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from qlab.model import Source


class Recipe(Protocol):
    """What artifacts are made of; a frozen dataclass, so that equal options are equal recipes."""

    @property
    def name(self) -> str: ...

    def quantize(self, source: Source, windows: Tensor, out: Path) -> None:
        """Write the quantized checkpoint of `source` to the folder `out`; calibration int64 [windows, length]."""


@dataclass(frozen=True)
class AutoAWQ:
    """The guide's AWQ recipe, by the AutoAWQ library: 4 bits, zero points, GEMM layout."""

    group_size: int = 128

    @property
    def name(self) -> str:
        return f"autoawq-w4g{self.group_size}"

    def quantize(self, source: Source, windows: Tensor, out: Path) -> None:
        from qlab.peers import autoawq

        autoawq.quantize(source, windows, out, self.group_size)


@dataclass(frozen=True)
class AutoGPTQ:
    """GPTQ by the AutoGPTQ library. The default serves everywhere; the guide's asks for `symmetric=False, act_order=True`."""

    group_size: int = 128
    symmetric: bool = True
    act_order: bool = False

    @property
    def name(self) -> str:
        return f"autogptq-w4g{self.group_size}{'' if self.symmetric else '-asym'}{'-actorder' if self.act_order else ''}"

    def quantize(self, source: Source, windows: Tensor, out: Path) -> None:
        from qlab.peers import autogptq

        autogptq.quantize(source, windows, out, self.group_size, self.symmetric, self.act_order)


@dataclass(frozen=True)
class BitsAndBytes:
    """4-bit NormalFloat (or FP4, its control) by bitsandbytes; blocks of 64, absmax quantized again when doubled."""

    kind: str = "nf4"
    double_quantization: bool = True

    @property
    def name(self) -> str:
        return f"{self.kind}{'-double' if self.double_quantization else ''}"

    def quantize(self, source: Source, windows: Tensor, out: Path) -> None:
        from qlab.peers import bitsandbytes

        bitsandbytes.quantize(source, out, self.kind, self.double_quantization)


@dataclass(frozen=True)
class GGUF:
    """A GGUF file by qlab's own encoder: `mix` f16, q8_0 or q4_k_m."""

    mix: str = "q4_k_m"

    @property
    def name(self) -> str:
        return f"gguf-{self.mix}"

    def quantize(self, source: Source, windows: Tensor, out: Path) -> None:
        import shutil

        from qlab.formats.gguf import write_gguf

        write_gguf(source.path, source.config, self.mix, out / f"model-{self.mix}.gguf")
        # llama.cpp reads the tokenizer from the file itself; Python tools keep the original's, which is exact.
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(source.path / name, out / name)


def describe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, for manifests."""
    return {"recipe": type(recipe).__name__, **asdict(recipe)}  # type: ignore[call-overload]
