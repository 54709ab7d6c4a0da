"""Recipes of grouped integers: RTN, AWQ, GPTQ, both together, and tuned; stored in AWQ's, GPTQ's or compressed-tensors' layout."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qlab.methods.awq import best_scale, output_error
from qlab.methods.gptq import compensated
from qlab.methods.grid import GroupedIntegers
from qlab.methods.rtn import rtn
from qlab.methods.tuned import SoftIntegers, tune
from qlab.models.layout import linear_layers
from qlab.models.opening import OpenedModel
from qlab.recipes.fitting import Layers, check_layers, fitted_size, layers_of, left_alone, stored_layers, summary, unquantized
from qlab.recipes.layouts import AWQ, COMPRESSED, GPTQ, Layout, Left, Scheme
from qlab.recipes.recipe import Fitted, Walked
from qlab.support.errors import UserError
from qlab.support.stages import stage
from qlab.walk.block import Block
from qlab.walk.folding import divided, fold_before_experts, fold_scales
from qlab.walk.statistics import Statistics
from qlab.walk.walk import Calibration, Quantized

STEPS, BATCH = 160, 4  # of tuning a block, and windows a step; more of both mostly gain, where there is calibration text for them
UNTUNED = "steps and windows a step are of tuning, such as tuned-w4g128-steps320-batch8: {} takes none"
RoundedPart = tuple[Block, dict[str, Statistics], Iterable[tuple[str, tuple[GroupedIntegers, Tensor]]]]
"""A part of a block, the statistics of its layers, and these by name: quantized, and beside it the weights float32 [out, in] rounded."""
DEFAULTS: dict[str, dict[str, Any]] = {
    "rtn": {"symmetric": False, "order": "given", "search": False, "sequential": False},
    "awq": {"symmetric": False, "order": "given", "search": True, "sequential": False},
    "gptq": {"symmetric": True, "order": "group", "search": True, "sequential": False},
    "awq-gptq": {"symmetric": False, "order": "group", "search": True, "sequential": False},
    "tuned": {"symmetric": False, "order": "group", "search": True, "sequential": True},
}
ORDER_NAMES = {"given": "inorder", "static": "static", "group": "grouporder", "scattered": "actorder"}
PATTERN = re.compile(
    rf"({'|'.join(sorted(DEFAULTS, key=len, reverse=True))})-w([2-8])g(\d{{1,6}}|row)(-sym|-asym)?"
    rf"((?:-(?:{'|'.join(ORDER_NAMES.values())}))?)(-search|-cover)?(-sequential)?(?:-steps(\d{{1,6}}))?(?:-batch(\d{{1,4}}))?(-ct)?"
)


@dataclass(frozen=True)
class Integers(Walked):
    """Grouped integers: `method` rtn, awq, gptq, awq-gptq (scales by AWQ, rounding by GPTQ) or tuned (GPTQ, then by gradient).

    H is shrunk by what its tokens can tell (qlab.methods.hessian) wherever GPTQ rounds.
    `order` and `search` as in qlab.methods.gptq; RTN and AWQ take `search` likewise. `sequential`: what a block sees is what the
    blocks quantized before it make, not what the original's do. Tuning needs that; for GPTQ it takes longer, and
    on models of four blocks changes KL by a few percent at most (`make bench-quantize` prints it), so it is a choice.
    Tuning takes `steps` steps a block, of `batch` calibration windows each.
    4-bit asymmetric codes in consecutive groups are stored in AWQ's layout, all else in GPTQ's; `compressed` ones, whatever they are, in
    compressed-tensors, of which vLLM serves asymmetric grids of GPTQ too.
    """

    method: str = "awq"
    bits: int = 4
    group_size: int = 128
    symmetric: bool = False
    order: str = "given"
    search: bool = True
    sequential: bool = False
    steps: int = STEPS
    batch: int = BATCH
    compressed: bool = False

    def __post_init__(self) -> None:
        if self.group_size != -1 and self.group_size < 1:
            raise UserError(f"groups of {self.group_size} weights: expected a group size of 1 or more, such as 128, or 'row'")
        if self.method != "tuned" and (self.steps, self.batch) != (STEPS, BATCH):
            raise UserError(UNTUNED.format(self.method))
        if self.steps < 1:
            raise UserError(f"tuning for {self.steps} steps: expected 1 or more, such as {STEPS}")
        if self.batch < 1:
            raise UserError(f"tuning on {self.batch} windows a step: expected 1 or more, such as {BATCH}")
        if self.method == "tuned" and not self.sequential:
            raise UserError("tuning follows the quantized blocks: a tuned recipe is always sequential")

    @property
    def name(self) -> str:
        size = "row" if self.group_size == -1 else str(self.group_size)
        default = DEFAULTS[self.method]
        parts = [f"{self.method}-w{self.bits}g{size}"]
        parts += [] if self.symmetric == default["symmetric"] else ["sym" if self.symmetric else "asym"]
        parts += [] if self.order == default["order"] else [ORDER_NAMES[self.order]]
        parts += [] if self.search == default["search"] else ["search" if self.search else "cover"]
        parts += [] if self.sequential == default["sequential"] else ["sequential"]
        parts += [] if self.steps == STEPS else [f"steps{self.steps}"]
        parts += [] if self.batch == BATCH else [f"batch{self.batch}"]
        parts += ["ct"] if self.compressed else []
        return "-".join(parts)

    @property
    def targets(self) -> bool:  # type: ignore[override]
        return self.method == "tuned"

    @property
    def settles(self) -> bool:
        """Whether GPTQ's codes are gone over again (qlab.methods.settle)."""
        return self.method not in ("rtn", "awq") and self.search and self.order != "scattered"

    @property
    def layout(self) -> Layout:
        """What the checkpoint is stored in."""
        if self.compressed:
            return COMPRESSED
        return AWQ if self.bits == 4 and not self.symmetric and self.order != "scattered" and self.method != "gptq" else GPTQ

    @property
    def scheme(self) -> Scheme:
        """What that has to know of it."""
        return Scheme(self.bits, self.group_size, self.symmetric, self.order == "scattered")

    @property
    def format(self) -> str:
        return self.layout.format

    def check(self, source: OpenedModel) -> None:
        """Raise the UserError of widths that the layout has no room for, and of rows that the group size does not divide."""
        if self.bits not in self.layout.widths:
            held = ", ".join(map(str, self.layout.widths))
            raise UserError(f"{self.name}: the {self.layout.label} format holds {held} bits, not {self.bits}")
        check_layers(self.name, layers_of(source.layout), self.group_size, self.layout.unfit)

    def fitted(self, source: OpenedModel) -> Fitted:
        """With the largest group size up to the asked one that divides the model's rows."""
        layers = layers_of(source.layout)
        size, why = fitted_size(self.group_size, layers, self.layout.unfit)
        recipe = replace(self, group_size=size)
        remarks = [f"{recipe.name} instead of {self.name}: {why}"] if why else []
        remarks += [f"{recipe.name}: {sentence}" for sentence in summary(recipe.unquantized(layers))]
        return Fitted(recipe, self.name, tuple(remarks))

    def unquantized(self, layers: Layers) -> dict[str, str]:
        """The layers that stay in half precision, and why."""
        return unquantized(layers, self.group_size, self.layout.unfit)

    def left(self, block: Block) -> dict[str, str]:
        """The layers of a block, by their names in it, that stay in half precision, and why."""
        return self.unquantized({name: block.layer(name).weight.shape for name in block.layers})

    def quantize_block(self, source: OpenedModel, block: Block, calibration: Calibration | None) -> Quantized:
        assert calibration is not None
        kept = self.left(block)
        found = Quantized({}, notes={name: f"in half precision, since {reason}" for name, reason in kept.items()})
        with torch.no_grad():
            rounded = self._rounded(block, calibration, kept)
            if self.method == "tuned":
                rounded = self._tune(source, block, calibration, rounded)
            for part, statistics, layers in rounded:
                for name, (layer, original) in layers:
                    self._take(found, block, part, name, layer, original, statistics[name])
        quantized = set(block.layers) - set(kept)
        for name, tensor in block.module.state_dict().items():
            if name.removesuffix(".weight") not in quantized:
                found.stored |= self.keep(source, block.prefix + name, tensor)
        return found

    def _rounded(self, block: Block, calibration: Calibration, kept: Container[str]) -> Iterator[RoundedPart]:
        """The layers of each part of the block, but for those `kept` in half precision, scaled where that is wanted and rounded."""
        scales = self._scaled_experts(block, calibration, kept)
        for part in block.parts():
            within, scale = block.within(part), scales.get(part.place[0]) if part.place else None
            statistics = calibration.of(part, scale)
            if part.place is None:
                statistics = statistics | {
                    name: divided(statistics[name], scales[path]) for path in scales for name in block.experts[path].layers
                }
            rest = [replace(group, layers=[name for name in group.layers if within + name not in kept]) for group in part.groups]
            if self.scales_inputs:
                some = [group for group, left in zip(part.groups, rest) if left.layers]
                with stage("scale"):
                    statistics = fold_scales(replace(part, groups=some), statistics, self._best_scale)
            groups = [group.layers for group in rest if group.layers]
            yield part, statistics, (pair for names in groups for pair in self._round(part, names, statistics[names[0]]))

    @property
    def scales_inputs(self) -> bool:
        """Whether AWQ's scales are searched and folded."""
        return self.method in ("awq", "awq-gptq")

    def _scaled_experts(self, block: Block, calibration: Calibration, kept: Container[str]) -> dict[str, Tensor]:
        """Scales of what experts read, folded, by the name of their list."""
        found: dict[str, Tensor] = {}
        for path, mixture in block.experts.items():
            if self.scales_inputs and f"{path}.0.{mixture.groups[0].layers[0]}" not in kept:
                with stage("scale"):
                    scale = fold_before_experts(block, path, calibration.routing[path], self._best_scale)
                if scale is not None:
                    found[path] = scale
        return found

    def _best_scale(self, weight: Tensor, magnitude: Tensor, mean_square: Tensor) -> Tensor:
        return best_scale(weight, magnitude, mean_square, self.bits, self.group_size, self.symmetric)

    def _take(
        self, found: Quantized, block: Block, part: Block, name: str, layer: GroupedIntegers, original: Tensor, seen: Statistics
    ) -> None:
        """Note a layer's error, put its quantized weights into the block, and pack it."""
        within = block.within(part)
        with stage("error"):
            weight = layer.dequantize()
            found.errors[within + name] = output_error(weight, original, seen.hessian)
        found.notes[within + name] = layer.note
        part.layer(name).weight.data.copy_(weight)
        with stage("pack"):
            packed = self._pack(part.prefix + name, layer)
        found.stored |= {f"{part.prefix}{name}.{kind}": tensor for kind, tensor in packed.items()}

    def _round(self, block: Block, names: list[str], seen: Statistics) -> Iterator[tuple[str, tuple[GroupedIntegers, Tensor]]]:
        """Layers of one input, quantized as one matrix, each with what its error is held against; for tuning, what GPTQ rounded."""
        weights, stacked = [block.layer(name).weight for name in names], block.stacked(names)
        if self.method in ("rtn", "awq"):
            whole = rtn(stacked, self.bits, self.group_size, self.symmetric, seen.hessian if self.search else None)
        else:
            options = (self.bits, self.group_size, self.symmetric, self.order, self.search)
            whole, exact = compensated(stacked, seen.attended(), *options, trust=seen.trust)
            if self.method == "tuned":
                weights = list(exact.split([len(weight) for weight in weights]))
            del exact
        del stacked
        yield from zip(names, zip(whole.rows([len(weight) for weight in weights]), weights))

    @torch.enable_grad()
    def _tune(self, source: OpenedModel, block: Block, calibration: Calibration, rounded: Iterable[RoundedPart]) -> Iterator[RoundedPart]:
        """All layers of the block moved together, and with them what is not quantized, but for the gates: who computes a token, stays."""
        soft: dict[str, SoftIntegers] = {}
        with torch.no_grad():
            pairs = {block.within(part) + name: pair for part, _, layers in rounded for name, pair in layers}
        for name in list(pairs):
            soft[name] = SoftIntegers(*pairs.pop(name))
        still = {f"{name}.weight" for name in linear_layers(block.module)} | {
            name for name, _ in block.module.named_parameters() if (block.prefix + name).rpartition(".")[0] in source.layout.gates
        }
        names = [name for name, _ in block.module.named_parameters() if name not in still]
        rest = {name: block.module.get_parameter(name).detach().clone() for name in names}
        tune(block.functional, soft, rest, calibration.random_batches(self.batch, block.device), self.steps, calibration.metric())
        for name, tensor in rest.items():
            block.module.get_parameter(name).data.copy_(tensor)  # whether FP16 holds it, the end of the walk tells
        for part in block.parts():
            within = block.within(part)
            done = [name for name in part.layers if within + name in soft]
            if done:
                yield part, calibration.of(part), ((name, (soft.pop(within + name).finish(), part.layer(name).weight)) for name in done)

    def _pack(self, name: str, layer: GroupedIntegers) -> dict[str, Tensor]:
        try:
            return self.layout.pack(layer, self.scheme)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error

    def assemble(self, source: OpenedModel, parts: Sequence[Path], out: Path, largest: float) -> None:
        kept, quantized = stored_layers(source.layout, parts)
        entry = self.layout.configuration(self.scheme, Left(kept, quantized, left_alone(source)))
        self.finish(source, parts, out, entry, largest)


def parse_integers(name: str) -> Integers | None:
    """The recipe of a short name such as gptq-w4g128-asym-actorder, if it is one of this family.

    Raises:
        UserError: steps or windows a step behind a method that takes none, or a number that none can have.
    """
    match = PATTERN.fullmatch(name)
    if match is None:
        return None
    method, bits, size, signs, order, grids, sequential, steps, batch, compressed = match.groups()
    options: dict[str, Any] = {"symmetric": signs == "-sym"} if signs else {}
    options |= {"order": next(key for key, value in ORDER_NAMES.items() if order == f"-{value}")} if order else {}
    options |= {"search": grids == "-search"} if grids else {}
    options |= {"sequential": True} if sequential else {}
    if (steps or batch) and method != "tuned":
        raise UserError(UNTUNED.format(method))
    options |= {"steps": int(steps)} if steps else {}
    options |= {"batch": int(batch)} if batch else {}
    options |= {"compressed": True} if compressed else {}
    return Integers(method, int(bits), -1 if size == "row" else int(size), **(DEFAULTS[method] | options))
