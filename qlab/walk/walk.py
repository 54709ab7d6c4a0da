"""The walk: one pass over a checkpoint's decoder blocks, a block in memory at a time, feeding any number of recipes.

Everything that must outlive a block lies on disk: the activations between blocks, the encoded tensors, a journal of what
is done. So memory does not grow with the number of blocks, nor on a CPU with the calibration text, and a walk that was killed goes
on from its last finished block and ends with the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from qlab.models.opening import OpenedModel
from qlab.support.precision import quick_products
from qlab.support.processes.process import steady_heap, trim_heap
from qlab.support.progress import counter
from qlab.support.stages import stage
from qlab.walk.block import Block, usual_batch
from qlab.walk.grouping import Groups, find_groups
from qlab.walk.routing import Routing, routed
from qlab.walk.sensitivity import gradients_at_blocks, metric_of, sensed_windows
from qlab.walk.skeleton import Skeleton
from qlab.walk.span import Largest, watched
from qlab.walk.state.activations import Activations
from qlab.walk.state.journal import Journal
from qlab.walk.state.share import ALONE, Share
from qlab.walk.state.streams import Streams, held
from qlab.walk.statistics import Statistics

ORIGINAL = "original"  # the stream of activations of the unquantized model


@dataclass
class Quantized:
    """What a recipe made of a block: tensors as its format stores them, each layer's relative output error, and remarks."""

    stored: dict[str, Tensor]
    errors: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """What a recipe may know of a block's data: statistics by layer, its inputs, the original block's outputs, and how much
    errors of these matter (qlab.walk.sensitivity; of a walk for recipes that want `targets` alone).

    `statistics` are of the layers outside experts, `routing` says what experts were given; `of` has both. `largest`: the largest
    absolute value of the block's activations (qlab.walk.span).
    """

    statistics: dict[str, Statistics]
    inputs: Activations
    targets: Activations | None  # None: no recipe of the walk asked for them
    metric: Callable[[], Tensor]
    largest: Largest
    routing: dict[str, Routing] = field(default_factory=dict)

    def of(self, part: Block, scale: Tensor | None = None) -> dict[str, Statistics]:
        """Statistics of the layers of a part of the block (Block.parts). Those of an expert are made now, with the weights that it has, and
        are not kept: whoever changes these has asked before. `scale` [width]: what it reads is divided by this."""
        if part.place is None:
            return self.statistics
        path, number = part.place
        if part.device.type == "cpu":
            trim_heap()  # what quantizing the expert before this one left: so many small holes that they add up
        with quick_products(part.device), watched(part, largest=self.largest), stage("forward"):
            return part.observe(replace(self.routing[path].shown(number), scale=scale), 1)

    def notes(self) -> dict[str, str]:
        """What is to be said of experts, by the name of their list."""
        return {path: note for path, routing in self.routing.items() if (note := routing.note())}

    def random_batches(self, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, targets) of `size` windows at a time, without end: each pass over the windows in another order, the same every run."""
        assert self.targets is not None
        generator = torch.Generator().manual_seed(0)
        while True:
            for chosen in torch.randperm(self.inputs.shape[0], generator=generator).split(size):
                yield self.inputs.pick(chosen, device), self.targets.pick(chosen, device)


class Method(Protocol):
    """A recipe as the walk sees it. `data`: whether it wants activations; `sequential`: those behind the blocks it has quantized;
    `targets`: beside them what the original block makes of the original's."""

    @property
    def name(self) -> str: ...
    @property
    def data(self) -> bool: ...
    @property
    def sequential(self) -> bool: ...
    @property
    def targets(self) -> bool: ...

    def quantize_block(self, source: OpenedModel, block: Block, calibration: Calibration | None) -> Quantized:
        """Quantize the block, which it may change; a sequential one leaves the quantized weights in it."""

    def encodes(self, source: OpenedModel, name: str) -> bool:
        """Whether a tensor outside the blocks is encoded too, which takes a CPU many times as long as a GPU."""

    def keep(self, source: OpenedModel, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """A tensor outside the blocks, or of a block but not of a layer, as it lies in a part: the format may narrow it when it is
        assembled. It lies on the walk's device where it is encoded."""

    def assemble(self, source: OpenedModel, parts: Sequence[Path], out: Path, largest: float) -> None:
        """Make the checkpoint in the folder `out` of the parts, in their order; `largest`, of the model's weights and activations as far
        as the walk saw them, tells whether it runs in FP16."""


def encoded_parts(work: Path, recipe: str) -> list[Path]:
    """What a walk with its state in `work` made by a recipe, in the model's order."""
    return sorted((work / recipe).glob("part-*.safetensors"))


def observes_original(methods: Iterable[Method]) -> bool:
    """Whether statistics of the unquantized model's activations are wanted beyond the first block, where all streams are one."""
    return any(method.data and not method.sequential for method in methods)


@dataclass(frozen=True)
class Walk:
    """A walk over `source` with its recipes; `work` holds its state, and `batch` calibration windows are computed at a time.

    None: as many as are fast on the device (`usual_batch`). `share`: what this device does of it, where there are several.
    """

    source: OpenedModel
    methods: Sequence[Method]
    windows: Tensor
    work: Path
    batch: int | None = None
    device: str = "cpu"
    share: Share = ALONE

    @property
    def state(self) -> Path:
        """The folder of this device's activations and journal."""
        return self.work if self.share.of == 1 else self.work / self.share.name

    @property
    def at_once(self) -> int:
        """Calibration windows computed at a time."""
        return usual_batch(self.windows.shape[1], self.device) if self.batch is None else self.batch

    def run(self) -> Journal:
        """Quantize all blocks, or those that an earlier run left undone; the encoded parts lie in `work` then."""
        steady_heap()
        skeleton = Skeleton(self.source, self.device)
        for method in self.methods:
            (self.work / method.name).mkdir(parents=True, exist_ok=True)
        self.state.mkdir(exist_ok=True)
        journal = Journal.open(self.state / "journal.json")
        journal.batch = journal.batch or self.at_once
        with closing(skeleton), closing(self._streams()) as streams:
            if not journal.kept:
                self._keep_rest(skeleton, journal, streams)
            groups = dict[frozenset[str], Groups]()
            steps = [len(self.share.of_block(self.methods, index)) for index in range(len(skeleton))]
            wanted = [index for index in range(len(skeleton)) if steps[index] or self._goes_on(index)]
            left = [index for index in wanted if index >= journal.blocks]
            with counter(sum(steps), sum(steps[: journal.blocks]), "quantizing") as count:
                for index, following in zip_longest(left, left[1:]):
                    with stage("read"):
                        skeleton.read_ahead(index)
                        block = skeleton.block(index, self.windows.shape[1])
                        if following is not None:
                            skeleton.read_ahead(following)
                        block.groups, block.experts = self._groups(block, groups)
                    self._quantize(skeleton, block, journal, streams, count)
                    skeleton.release(index)
                    trim_heap()  # holes that the next block does not fill exactly: many small experts would be there twice
                    journal.blocks = index + 1
                    streams.finish(index, partial(journal.save, journal.text()), last=following is None)
        return journal

    def _goes_on(self, index: int) -> bool:
        """Whether this device quantizes a block after `index` by the original model's activations."""
        return self.share.reads_original(self.methods, index + 1, self.source.layout.count)

    def _groups(self, block: Block, known: dict[frozenset[str], Groups]) -> Groups:
        """The block's groups and those in its experts; blocks with layers of the same names are alike."""
        names = block.linear or frozenset()
        if names not in known:
            hidden = torch.randn(1, self.windows.shape[1], self._hidden(), generator=torch.Generator().manual_seed(0))
            known[names] = find_groups(block, hidden.to(self.device))
        return known[names]

    def _hidden(self) -> int:
        return self.source.layout.hidden

    def _streams(self) -> Streams:
        shape = (self.windows.shape[0], self.windows.shape[1], self._hidden())
        streams = 1 + sum(method.sequential for method in self.methods)
        return Streams(self.state, shape, held(shape, streams * self.share.of, self.device), self.device)

    def _keep_rest(self, skeleton: Skeleton, journal: Journal, streams: Streams) -> None:
        """Embedding, final norm and head, the activations that the first block reads, and what tuning wants to know of all blocks."""
        for number, name in enumerate(skeleton.rest() if self.share.rank == 0 else []):
            largest = Largest()
            for method in self.methods:  # each in a part of its own: on a CPU embedding and head are never both in memory
                tensor = skeleton.checkpoint.read(name)
                largest.see(tensor)
                place = self.device if method.encodes(self.source, name) else tensor.device
                self._write(streams, method, f"0000-{number:03}", method.keep(self.source, name, tensor.to(place)))
                journal.saw(method.name, largest.value)
                del tensor
        tuned, started = [method for method in self.share.of_block(self.methods, 0) if method.targets], time.perf_counter()
        if tuned:
            with stage("sensitivity"):
                gradients_at_blocks(self.source, self.windows, self.device, self._gradients, self.state)
        for method in tuned:
            journal.seconds[method.name] = time.perf_counter() - started
        if any(method.data for method in self.methods):
            skeleton.embed(self.windows, streams.new(ORIGINAL, 0))
        journal.kept = True
        streams.finish(-1, partial(journal.save, journal.text()))

    def _quantize(self, skeleton: Skeleton, block: Block, journal: Journal, streams: Streams, count: Any) -> None:
        index, last = block.index, block.index + 1 == len(skeleton)
        source, methods = streams.of(ORIGINAL, index), self.share.of_block(self.methods, index)
        shared, started = None, time.perf_counter()
        onward = self._goes_on(index) or any(method.targets for method in methods)
        outputs = streams.new(ORIGINAL, index + 1) if onward else None
        with quick_products(block.device):
            if observes_original(methods) or (index == 0 and any(method.data for method in methods)):
                shared = self._calibrate(block, source, outputs, journal.batch, streams, ORIGINAL, outputs)
            elif outputs:
                with stage("forward"):
                    outputs.write(block.outputs(source, journal.batch))
        weights = Largest(block.device)
        for parameter in block.module.parameters() if methods else ():
            weights.see(parameter)
        spent = time.perf_counter() - started
        whole = True  # the block still holds the original weights
        for method in sorted(methods, key=lambda method: method.sequential):
            started = time.perf_counter()
            if not whole:
                with stage("read"):
                    skeleton.fill(index)
            calibration = None  # before new statistics are made: their memory is wanted
            own = streams.of(method.name, index)
            if method.sequential and streams.has(method.name, index):
                shared = None
                with quick_products(block.device):
                    calibration = self._calibrate(block, own, outputs, journal.batch, streams, method.name)
            else:
                calibration, own = shared if method.data else None, source  # nothing is quantized before the first block
            with stage("quantize"):
                found = method.quantize_block(self.source, block, calibration)
            journal.saw(method.name, max(weights.value, calibration.largest.value if calibration else 0.0))
            notes = found.notes | (calibration.notes() if calibration else {})
            if method.sequential and not last:
                with quick_products(block.device), stage("forward"):
                    streams.new(method.name, index + 1).write(block.outputs(own, journal.batch))
            with stage("write"):
                self._write(streams, method, f"{index + 1:04}", found.stored)
            journal.add(method.name, block.prefix, found.errors, notes, time.perf_counter() - started + (spent if method.data else 0))
            whole = False
            count(f"{method.name}, block {index}", found.errors)
            del found
            trim_heap()

    def _calibrate(
        self, block: Block, inputs: Activations, targets: Activations | None, batch: int, streams: Streams, name: str,
        outputs: Activations | None = None,
    ) -> Calibration:  # fmt: skip
        last = block.index + 1 == self.source.layout.count

        def place(path: str, width: int) -> Activations:
            return streams.passing(f"{name}.{path}", block.index, width)

        with watched(block, output=last) as largest, routed(block, place) as routing, stage("forward"):
            statistics = block.observe(inputs, batch, outputs, through=last)
        metric = partial(metric_of, self._gradients(block.index), block.device)
        return Calibration(statistics, inputs, targets, metric, largest, routing)

    def _gradients(self, index: int) -> Activations:
        """The gradients at the output of block `index`; they are forgotten with the block's inputs."""
        count, length = self.windows.shape
        return Activations(self.state / f"gradients-{index}.bin", (sensed_windows(count, length), length, self._hidden()))

    def _write(self, streams: Streams, method: Method, number: str, tensors: dict[str, Tensor]) -> None:
        if tensors:
            streams.save_part(tensors, self.work / method.name / f"part-{number}.safetensors")
