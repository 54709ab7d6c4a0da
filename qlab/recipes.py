"""Recipes: a method and its options, frozen, each with its short name; `parse` reads the names that people type.

A recipe of this file is what the walk feeds blocks to (qlab.walk.Method). Those of the peers are in qlab.peers.recipes.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from qlab.block import Block
from qlab.errors import UserError
from qlab.folding import fold_scales
from qlab.formats import awq, gguf, gptq
from qlab.formats import bitsandbytes as bnb
from qlab.formats.folder import finish_folder, half_precision
from qlab.formats.gguf_mix import check_mix
from qlab.formats.gguf_read import decode
from qlab.methods.awq import best_scale, output_error
from qlab.methods.gptq import compensated
from qlab.methods.grid import GroupedIntegers
from qlab.methods.nf4 import nf4
from qlab.methods.rtn import rtn
from qlab.methods.tuned import Rates, SoftIntegers, tune
from qlab.model import Source
from qlab.statistics import Statistics
from qlab.walk import Calibration, Method, Quantized, Walk

TUNED_WINDOWS = 2  # windows a step of tuning; four took twice as long and were no better
Details = dict[str, Any]
"""What quantizing found out, for the manifest: errors by layer, remarks."""
Rounded = dict[str, tuple[GroupedIntegers, Tensor]]
"""Layers by name: quantized, and beside it the weights float32 [out, in] that were rounded."""


class Recipe(Protocol):
    """What artifacts are made of; a frozen dataclass, so that equal options are equal recipes."""

    @property
    def name(self) -> str: ...

    def quantize(self, source: Source, windows: Tensor, out: Path) -> Details:
        """Write the quantized checkpoint of `source` to the folder `out`; calibration int64 [windows, length]."""


class WalkedRecipe(Recipe, Method, Protocol):
    """A recipe that the walk can feed."""


class Walked:
    """What recipes that the walk feeds have in common."""

    data = True
    sequential = False

    def quantize(self: WalkedRecipe, source: Source, windows: Tensor, out: Path) -> Details:
        """Walk for this recipe alone."""
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".walk-") as work:
            walk = Walk(source, [self], windows, Path(work))
            journal = walk.run()
            self.assemble(source, walk.parts(self), out)
        return journal.details(self.name)


@dataclass(frozen=True)
class Integers(Walked):
    """Grouped integers: `method` rtn, awq, gptq, awq-gptq (scales by AWQ, rounding by GPTQ) or tuned (GPTQ, then by gradient).

    `order` and `search` as in qlab.methods.gptq; RTN and AWQ take `search` likewise. 4-bit asymmetric codes in consecutive
    groups are stored in AWQ's layout, which current runtimes serve; all else in GPTQ's.
    """

    method: str = "awq"
    bits: int = 4
    group_size: int = 128
    symmetric: bool = False
    order: str = "given"
    search: bool = True
    steps: int = 200

    @property
    def name(self) -> str:
        size = "row" if self.group_size == -1 else str(self.group_size)
        default = DEFAULTS[self.method]
        parts = [f"{self.method}-w{self.bits}g{size}"]
        parts += [] if self.symmetric == default["symmetric"] else ["sym" if self.symmetric else "asym"]
        parts += [] if self.order == default["order"] else [ORDER_NAMES[self.order]]
        parts += [] if self.search == default["search"] else ["search" if self.search else "cover"]
        parts += [] if self.steps == 200 else [f"steps{self.steps}"]
        return "-".join(parts)

    @property
    def sequential(self) -> bool:  # type: ignore[override]
        return self.method in ("gptq", "awq-gptq", "tuned")

    @property
    def awq_layout(self) -> bool:
        return self.bits == 4 and not self.symmetric and self.order != "scattered" and self.method != "gptq"

    def quantize_block(self, source: Source, block: Block, calibration: Calibration | None) -> Quantized:
        assert calibration is not None
        statistics = calibration.statistics
        with torch.no_grad():
            if self.method in ("awq", "awq-gptq"):
                scale = lambda weight, magnitude, mean_square: best_scale(  # noqa: E731
                    weight, magnitude, mean_square, self.bits, self.group_size, self.symmetric
                )
                statistics = fold_scales(block, statistics, scale)
            rounded: Iterable[tuple[str, tuple[GroupedIntegers, Tensor]]] = (
                pair for group in block.groups for pair in self._round(block, group.layers, statistics[group.layers[0]])
            )
            if self.method == "tuned":
                rounded = self._tune(block, calibration, dict(rounded))
            found = Quantized({})
            for name, (layer, original) in rounded:
                weight = layer.dequantize()
                found.errors[name] = output_error(weight, original, statistics[name].hessian)
                found.notes[name] = layer.note
                block.layer(name).weight.data.copy_(weight)
                packed = self._pack(block.prefix + name, layer)
                found.stored |= {f"{block.prefix}{name}.{kind}": part for kind, part in packed.items()}
        for name, tensor in block.module.state_dict().items():
            if name.removesuffix(".weight") not in block.layers:
                found.stored |= self.keep(source, block.prefix + name, tensor)
        return found

    def _round(self, block: Block, names: list[str], seen: Statistics) -> Iterator[tuple[str, tuple[GroupedIntegers, Tensor]]]:
        """Layers of one input, quantized as one matrix, each with what its error is held against; for tuning, what GPTQ rounded."""
        weights = [block.layer(name).weight for name in names]
        stacked = torch.cat(weights) if len(weights) > 1 else weights[0]
        if self.method in ("rtn", "awq"):
            whole = rtn(stacked, self.bits, self.group_size, self.symmetric, seen.hessian if self.search else None)
        else:
            whole, exact = compensated(stacked, seen.hessian, self.bits, self.group_size, self.symmetric, self.order, self.search)
            if self.method == "tuned":
                weights = list(exact.split([len(weight) for weight in weights]))
            del exact
        del stacked
        yield from zip(names, zip(whole.rows([len(weight) for weight in weights]), weights))

    @torch.enable_grad()
    def _tune(self, block: Block, calibration: Calibration, layers: Rounded) -> Iterator[tuple[str, tuple[GroupedIntegers, Tensor]]]:
        soft = {name: SoftIntegers(*layers.pop(name)) for name in block.layers}
        names = [name for name, _ in block.module.named_parameters() if name.removesuffix(".weight") not in soft]
        rest = {name: block.module.get_parameter(name).detach().clone() for name in names}
        tune(block.functional, soft, rest, calibration.random_batches(TUNED_WINDOWS, block.device), self.steps, Rates())
        for name, tensor in rest.items():
            block.module.get_parameter(name).data.copy_(tensor.half().float())  # as it will be stored
        for name, layer in soft.items():
            yield name, (layer.finish(), block.layer(name).weight)

    def _pack(self, name: str, layer: GroupedIntegers) -> dict[str, Tensor]:
        try:
            return awq.pack(layer) if self.awq_layout else gptq.pack(layer)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error

    def keep(self, source: Source, name: str, tensor: Tensor) -> dict[str, Tensor]:
        return {name: half_precision(name, tensor)}

    def assemble(self, source: Source, parts: Sequence[Path], out: Path) -> None:
        if self.awq_layout:
            entry = awq.quantization_config(self.group_size, ["lm_head"])
        else:
            entry = gptq.quantization_config(self.bits, self.group_size, self.symmetric, self.order == "scattered")
        finish_folder(source, parts, out, entry)


@dataclass(frozen=True)
class NF4(Walked):
    """4-bit NormalFloat (or FP4, its control) as bitsandbytes stores it; no calibration."""

    kind: str = "nf4"
    double: bool = True
    data = False

    @property
    def name(self) -> str:
        return f"{self.kind}{'' if self.double else '-single'}"

    def quantize_block(self, source: Source, block: Block, calibration: Calibration | None) -> Quantized:
        found = Quantized({})
        for name, tensor in block.module.state_dict().items():
            layer = name.removesuffix(".weight")
            if layer not in block.layers:
                found.stored |= self.keep(source, block.prefix + name, tensor)
                continue
            quantized = nf4(half_precision(block.prefix + name, tensor), kind=self.kind, double=self.double)
            found.stored |= {f"{block.prefix}{layer}.{kind}": part for kind, part in bnb.pack(quantized).items()}
            found.errors[layer] = float((quantized.dequantize() - tensor).square().sum() / tensor.square().sum().clamp(min=1e-30))
        return found

    def keep(self, source: Source, name: str, tensor: Tensor) -> dict[str, Tensor]:
        return {name: half_precision(name, tensor)}

    def assemble(self, source: Source, parts: Sequence[Path], out: Path) -> None:
        finish_folder(source, parts, out, bnb.quantization_config(self.kind, self.double))


@dataclass(frozen=True)
class GGUF(Walked):
    """A GGUF file in one of llama.cpp's mixes; `importance` weighs the search by the calibration text's activations."""

    mix: str = "q4_k_m"
    importance: bool = True

    @property
    def name(self) -> str:
        return f"{self.mix}{'' if self.importance or not self.data_matters else '-plain'}"

    @property
    def data_matters(self) -> bool:
        return self.mix not in ("f16", "q8_0")

    @property
    def data(self) -> bool:  # type: ignore[override]
        return self.importance and self.data_matters

    def quantize_block(self, source: Source, block: Block, calibration: Calibration | None) -> Quantized:
        found = Quantized({})
        for name, tensor in block.module.state_dict().items():
            layer = name.removesuffix(".weight")
            seen = calibration.statistics.get(layer) if calibration else None
            weights = seen.mean_square.cpu() if seen else None
            stored = gguf.encode_tensor(block.prefix + name, tensor.cpu(), self.mix, source.config, weights)
            found.stored |= stored
            if seen and layer in block.layers:
                original = gguf.rotary_order(block.prefix + name, tensor.cpu(), source.config)
                found.errors[layer] = output_error(decode(stored), original, seen.hessian.cpu())
        return found

    def keep(self, source: Source, name: str, tensor: Tensor) -> dict[str, Tensor]:
        return gguf.encode_tensor(name, tensor, self.mix, source.config)

    def assemble(self, source: Source, parts: Sequence[Path], out: Path) -> None:
        gguf.assemble(parts, source.path, source.config, self.mix, out / f"model-{self.mix}.gguf")
        finish_folder(source, [], out, None)  # llama.cpp reads the tokenizer from the file; Python tools keep the original's


DEFAULTS: dict[str, dict[str, Any]] = {
    "rtn": {"symmetric": False, "order": "given", "search": False},
    "awq": {"symmetric": False, "order": "given", "search": True},
    "gptq": {"symmetric": True, "order": "group", "search": True},
    "awq-gptq": {"symmetric": False, "order": "group", "search": True},
    "tuned": {"symmetric": False, "order": "group", "search": True},
}
ORDER_NAMES = {"given": "inorder", "static": "static", "group": "grouporder", "scattered": "actorder"}
PATTERN = re.compile(
    rf"({'|'.join(sorted(DEFAULTS, key=len, reverse=True))})-w([2-8])g(\d+|row)(-sym|-asym)?"
    rf"((?:-(?:{'|'.join(ORDER_NAMES.values())}))?)(-search|-cover)?(?:-steps(\d+))?"
)


def integers(method: str, bits: int = 4, group_size: int = 128, **options: Any) -> Integers:
    """A recipe of grouped integers with the defaults of its method."""
    return Integers(method, bits, group_size, **(DEFAULTS[method] | options))


def parse(name: str) -> WalkedRecipe:
    """The recipe of a short name, such as awq-w4g128, gptq-w4g128-asym-actorder, tuned-w3g64, nf4, q4_k_m.

    Raises:
        UserError: no such recipe.
    """
    if name in ("nf4", "nf4-single", "fp4", "fp4-single"):
        return NF4(name[:3], not name.endswith("-single"))
    if match := PATTERN.fullmatch(name):
        method, bits, size, signs, order, grids, steps = match.groups()
        options: dict[str, Any] = {"symmetric": signs == "-sym"} if signs else {}
        options |= {"order": next(key for key, value in ORDER_NAMES.items() if order == f"-{value}")} if order else {}
        options |= {"search": grids == "-search"} if grids else {}
        options |= {"steps": int(steps)} if steps else {}
        return integers(method, int(bits), -1 if size == "row" else int(size), **options)
    mix, plain = (name.removesuffix("-plain"), name.endswith("-plain"))
    try:
        check_mix(mix)
    except UserError as error:
        raise UserError(
            f"no recipe {name!r}: expected such as awq-w4g128, gptq-w4g128, gptq-w4g128-asym-actorder, awq-gptq-w4g128, tuned-w4g128, "
            f"rtn-w4g128, nf4, or a GGUF mix ({error})"
        ) from error
    return GGUF(mix, importance=not plain)


def describe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, for manifests."""
    return {"recipe": type(recipe).__name__, **asdict(recipe)}  # type: ignore[call-overload]
