"""What every lesson starts from: the model, its tokenizer, calibration and evaluation windows, the original as reference."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qlab import ROOT
from qlab.artifacts.artifact import Artifact, artifact_folder, known_artifact, make_artifact, model_folder, quantize_model
from qlab.evaluate.arithmetic import FLOOR, in_bfloat16
from qlab.evaluate.kept import Predictor, kept_logits
from qlab.evaluate.quality import Quality, measure_quality
from qlab.formats import awq
from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import OpenedModel, already_rounded, check_length, decoder_layers, found_device, locate
from qlab.models.plain_copy import plain_copy
from qlab.models.resting.choosing import IN_MEMORY, WHOLE, held_on, resting_bytes
from qlab.models.resting.layers import at_rest, set_aside
from qlab.models.texts.tokens import embedding_rows
from qlab.models.texts.windows import Reading, read_windows
from qlab.recipes import Recipe, WalkedRecipe
from qlab.recipes.fitting import fitted_size, layers_of
from qlab.support.memory import disk_bytes
from qlab.support.processes.process import run_isolated
from qlab.support.wording import Sentence
from qlab.walk.by_block import Windows, predictor
from qlab.walk.routing import collect, collect_beside
from qlab.walk.statistics import ChannelMeans, Statistics
from qlab.workbook.held.changed import Change, changed_at_rest
from qlab.workbook.held.statistics import KeptStatistics
from qlab.workbook.judged import judged
from qlab.workbook.language.spoken import gettext, say
from qlab.workbook.parameters import by_size
from qlab.workbook.record import record
from qlab.workbook.refused import able, check_recipe

GROUP_SIZE = 128  # the guide's
BLOCKS = 5  # that experiments layer by layer look at
R = TypeVar("R", bound=Recipe | None)


@dataclass(frozen=True)
class Lesson:
    """The subject of a lesson and the windows that were cut for calibration and to judge it by.

    `group_size`: weights that share a scale, in every recipe and experiment of this model, the libraries' included.
    """

    source: OpenedModel
    tokenizer: PreTrainedTokenizerBase
    reference: PreTrainedModel
    calibration_reading: Reading
    evaluation_reading: Reading
    work: str
    group_size: int = GROUP_SIZE
    changed: list[str] = field(default_factory=list, repr=False)  # the layers that hold other weights than the original's

    @cached_property
    def layers(self) -> dict[str, nn.Linear]:
        """The original's decoder layers by name, but for those whose rows groups of `group_size` do not divide."""
        found = decoder_layers(self.reference)
        return {name: layer for name, layer in found.items() if layer.in_features % self.group_size == 0}

    @cached_property
    def sample(self) -> dict[str, nn.Linear]:
        """The `layers` of BLOCKS blocks, evenly spread, the first and the last among them: what experiments layer by layer look at."""
        return {name: layer for name, layer in self.layers.items() if self._block(name) in self.sampled_blocks}

    @property
    def sampled_blocks(self) -> list[int]:
        """The numbers of the blocks that `sample` has."""
        count = self.source.layout.count
        return sorted({round(place * (count - 1) / (BLOCKS - 1)) for place in range(BLOCKS)}) if count > BLOCKS else list(range(count))

    def _block(self, name: str) -> int:
        return int(name.removeprefix(f"{self.source.layout.blocks}.").partition(".")[0])

    def able(self, recipes: Mapping[str, R]) -> dict[str, R]:
        """Those of `recipes` that can take this model; of each other one a printed sentence says why it is left out."""
        return able(recipes, lambda recipe: check_recipe(recipe, self.source))

    def by_size(self, name: str, given: int) -> int:
        """A parameter of the lesson as it was `given`; where it is 0, less for a large model (qlab.workbook.parameters)."""
        return by_size(name, given, self.source)

    @property
    def calibration(self) -> Tensor:
        """Calibration windows, int64 [windows, length]."""
        return self.calibration_reading.windows

    @property
    def evaluation(self) -> Tensor:
        """Evaluation windows, int64 [windows, length]."""
        return self.evaluation_reading.windows

    def artifact(self, recipe: Recipe) -> Artifact:
        """The artifact of `recipe`, made now or taken from an earlier run with the same inputs; its cost is recorded."""
        device = self.device
        known = known_artifact(recipe, self.source, self.calibration, self.work, device)
        with nullcontext() if known else self.aside():
            made = make_artifact(recipe, self.source, self.calibration, self.work, self.calibration_reading.as_dicts(), device)
        cost = {"seconds": made.seconds, "peak_bytes": made.peak_bytes, "disk_bytes": made.disk_bytes, "device": made.device}
        record(f"cost/{recipe.name}", cost)
        record(f"settings/{recipe.name}", made.source.config.get("quantization_config") or {})
        return made

    def walk_together(self, recipes: Sequence[WalkedRecipe]) -> None:
        """Make those artifacts of `recipes` that are not there in one walk, which reads and computes each block once for all of them.

        `artifact` then finds them. What each costs alone is not known from such a walk. Another lesson that walks over the model is waited
        for.
        """
        if not recipes:
            return
        folder = artifact_folder(recipes[0], self.source, self.work).parent
        arguments = (self.source, recipes, self.calibration, folder, None, self.device, self.calibration_reading.as_dicts(), (), True)
        with self.aside():
            run_isolated(quantize_model, *arguments)

    def aside(self) -> AbstractContextManager[None]:
        """Within the context the original, where it is at rest on a GPU, leaves its room there to others, and cannot compute."""
        return set_aside(self.reference)

    @property
    def at_rest(self) -> bool:
        """Whether the original is too large to be whole in FP32 on the device (qlab.models.resting). Nothing else of its size is then."""
        return at_rest(self.reference)

    def evaluate(self, name: str, model: nn.Module | Artifact) -> Quality:
        """Quality of a model or artifact against the original; recorded as `quality/name`. An artifact's is kept for other lessons, and a
        large one is never whole in memory."""
        if isinstance(model, Artifact):
            quality = self._kept(model.path, model.manifest, lambda: self._measured(name, model))
        else:
            quality = self._measured(name, model)
        record(f"quality/{name}", quality.as_dict())
        return quality

    @cached_property
    def floor(self) -> dict[str, Quality]:
        """A row for every table of quality: how far the original is from itself when it is computed in BF16. Kept for other lessons."""
        name = "original-bf16"
        place = Path(self.work) / model_folder(self.source) / name
        quality = self._kept(place, name, lambda: self._measured(name, in_bfloat16(self.reference)))
        record(f"quality/{name}", quality.as_dict())
        return {FLOOR: quality}

    def predictor(self, artifact: Artifact | None, windows: Windows | None = None) -> Predictor:
        """What predicts the evaluation windows, or others, int64 [1, length] each, as the artifact does, or the original."""
        if artifact is None:
            return self.reference
        return predictor(artifact.source, self.evaluation if windows is None else windows, self.device, Path(self.work))[0]

    def _measured(self, name: str, model: Predictor | Artifact) -> Quality:
        expected = self.expected  # before the artifact is read: the original's output head in FP32 would be on the device beside its own
        return measure_quality(self.predictor(model) if isinstance(model, Artifact) else model, self.evaluation, expected, label=name)

    def _kept(self, place: Path, candidate: Any, judge: Callable[[], Quality]) -> Quality:
        return judged(place, candidate, self.source.fingerprint, self.evaluation, self.dtype, self.device, judge)

    @cached_property
    def expected(self) -> Sequence[Tensor]:
        """The original's logits for every evaluation window, which dozens of models are held against.

        Raises:
            UserError: the disk has no room for them.
        """
        Path(self.work).mkdir(parents=True, exist_ok=True)
        return kept_logits(self.reference, self.evaluation.split(1), Path(self.work))

    def statistics(self, windows: Tensor | None = None) -> Mapping[str, Statistics]:
        """Statistics of the inputs of the `sample`'s layers over the calibration windows, or some of them, by layer name: a matrix [in, in]
        for each, which for all layers would be larger than the model. Of a model at rest they are not all in memory."""
        if self.at_rest:
            blocks: dict[str, dict[str, nn.Linear]] = {}
            for name, layer in self.sample.items():
                blocks.setdefault(self.source.layout.block(self._block(name)).rstrip("."), {})[name] = layer
            return KeptStatistics(self.reference, blocks, self.calibration if windows is None else windows, Path(self.work))
        if windows is not None:
            return collect(self.reference, self.sample, windows)
        found, self.__dict__["channels"] = self._observed(self.sample)  # one pass gives both
        return found

    @cached_property
    def channels(self) -> dict[str, ChannelMeans]:
        """Mean |x| and x² of the channels that each of `layers` reads, over the calibration windows, by layer name."""
        return self._observed({})[1]

    def _observed(self, whole: dict[str, nn.Linear]) -> tuple[dict[str, Statistics], dict[str, ChannelMeans]]:
        others = {name: layer for name, layer in self.layers.items() if name not in whole}
        statistics, means = collect_beside(self.reference, whole, others, self.calibration)
        return statistics, {name: means[name] for name in self.layers}

    @contextmanager
    def with_weights(self, change: Change, chosen: Iterable[str] | None = None, costly: bool = False) -> Iterator[PreTrainedModel]:
        """Within the context the original, with `change(layer name, weight)` in place of the weight of each of `layers`, or of those
        `chosen`, which may be any linear layers. Its own weights are then read again from its checkpoint, so that the model is in memory
        once. Of a model at rest a weight is changed anew each time that it is needed, unless that is `costly`: then it is kept in a file.

        Raises:
            RuntimeError: another such context is open, whose weights `change` would be given.
            UserError: the checkpoint cannot be read.
        """
        if self.changed:
            raise RuntimeError("the original's weights are changed already: leave the other 'with lesson.with_weights(...)' first")
        self.expected  # noqa: B018 - the original's logits, while it is the original
        names = list(self.layers if chosen is None else chosen)
        if self.at_rest:
            self.changed.extend(names)
            try:
                with changed_at_rest(self.reference, change, names, costly, Path(self.work)):
                    yield self.reference
            finally:
                self.changed.clear()
            return
        try:
            for name in names:
                self.changed.append(name)
                weight = self._weight(name)
                weight.copy_(change(name, weight))  # in its own memory: a heap with holes would grow
            yield self.reference
        finally:
            while self.changed:
                name = self.changed.pop()
                self._weight(name).copy_(self.source.checkpoint.read(f"{name}.weight"))

    def _weight(self, name: str) -> Tensor:
        """A linear layer's weight in the whole original."""
        return self.reference.get_parameter(f"{name}.weight").data

    @property
    def dtype(self) -> torch.dtype:
        return self.reference.dtype

    @property
    def device(self) -> str:
        return str(self.reference.device)


def open_lesson(
    model: str, calibration_text: str, calibration_windows: int, calibration_length: int,
    evaluation_text: str, evaluation_windows: int, evaluation_length: int, work: str, device: str = "auto",
) -> Lesson:  # fmt: skip
    """Open `model`, cut both texts into windows no longer than the model's context, and print what was read.

    Raises:
        UserError: a model, text or size that cannot be used, before any work is done.
    """
    quiet()
    torch.manual_seed(0)
    work = str(ROOT / work)  # the runner's and JupyterLab's kernels stand in different folders, and find the same artifacts
    source = locate(model)
    if source.checkpoint.quantized:
        print(say(already_rounded(source)))
        source = plain_copy(source, Path(work) / "plain" / source.name.rpartition("/")[2])
    check_length(source, calibration_length, "calibration_length")
    check_length(source, evaluation_length, "evaluation_length")
    tokenizer = load_tokenizer(source)
    rows = embedding_rows(source.config)
    calibration = read_windows(calibration_text, tokenizer, calibration_length, calibration_windows, rows)
    evaluation_windows = by_size("evaluation_windows", evaluation_windows, source)
    evaluation = read_windows(evaluation_text, tokenizer, evaluation_length, evaluation_windows, rows)
    print(*map(say, [*calibration.lines(Sentence("calibration")), *evaluation.lines(Sentence("evaluation"))]), sep="\n")
    device = found_device(device)
    holding = held_on(source, device)
    if holding != WHOLE:
        print(said_at_rest(4.0 * source.layout.weights, resting_bytes(source), holding))
    # FP32 arithmetic: the same figures whether or not a machine has fast half precision.
    reference = load(source, torch.float32, device, apart=True, holding=holding)
    record("model", {
        "name": source.name, "fingerprint": source.fingerprint, "parameters": reference.num_parameters(),
        "disk_bytes": disk_bytes(source.path), "dtype": source.config.get("dtype") or source.config.get("torch_dtype"),
    })  # fmt: skip
    size, why = fitted_size(GROUP_SIZE, layers_of(source.layout), awq.unfit)
    record("group-size", size)
    lesson = Lesson(source, tokenizer, reference, calibration, evaluation, work, size)
    if why:
        groups = {"size": size, "usual": GROUP_SIZE, "why": why}
        print(say("Groups of {size} weights instead of {usual}, in every recipe of this model: {why}.", **groups))
    if len(shown := lesson.sampled_blocks) < source.layout.count:
        blocks = {"some": BLOCKS, "all": source.layout.count, "which": ", ".join(map(str, shown))}
        print(say("Experiments layer by layer look at {some} of {all} blocks: {which}.", **blocks))
    if others := [name for name in decoder_layers(reference) if name not in lesson.layers]:
        left = {"count": len(others), "size": size, "first": others[0]}
        print(say("Left out of the experiments, since groups of {size} do not divide their rows: {count} layers, {first}, …", **left))
    return lesson


def said_at_rest(whole: float, rests: float, holding: str) -> str:
    """That a model is held at rest, and takes `rests` bytes in place of `whole`, in the language that is spoken."""
    where = gettext("in the machine's memory") if holding == IN_MEMORY else gettext("on the device")
    text = (
        "In FP32 the model takes {whole:.2f} GB. It rests as it is stored, {rests:.2f} GB {where}, and computes in FP32: the same figures."
    )
    return say(text, whole=whole / 1e9, rests=rests / 1e9, where=where)


def quiet() -> None:
    """Keep loading bars and messages of libraries out of a lesson; what they raise still comes through, as one sentence of qlab's."""
    import transformers

    transformers.utils.logging.set_verbosity(logging.CRITICAL)  # beside what it raises it logs whole configurations
    transformers.utils.logging.disable_progress_bar()
    for library in ("torch", "bitsandbytes", "lm_eval"):  # of packages that one can do without, and models given as they are
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
