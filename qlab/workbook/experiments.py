"""What several lessons do: quantize each decoder layer in several ways and compare the errors; pick channels."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from qlab.artifacts.artifact import Artifact
from qlab.evaluate.kept import kept_logits
from qlab.evaluate.quality import Quality, measure_quality
from qlab.methods.awq import best_scale, output_error, sweep_exponents
from qlab.methods.gptq import compensated, gptq
from qlab.methods.grid import round_to_grid
from qlab.methods.rtn import rtn
from qlab.models.opening import OpenedModel, decoder_layers
from qlab.recipes import Integers, parse
from qlab.release.tuned import Tuned
from qlab.support.disk.scratch import Scratch
from qlab.support.errors import UserError
from qlab.support.progress import progress
from qlab.support.wording import Sentence, joined, layer_place
from qlab.walk.folding import fold_scales
from qlab.walk.grouping import find_groups
from qlab.walk.skeleton import Skeleton
from qlab.walk.state.activations import Activations
from qlab.walk.statistics import Statistics
from qlab.workbook.benchmark import beyond_chance
from qlab.workbook.language.spoken import say
from qlab.workbook.lesson import Lesson

Rounding = Callable[[Tensor, Statistics], Tensor]
"""A way to quantize: weight [out, in] and statistics of its inputs → the weights that come back, float32 [out, in]."""


def layer_errors(layers: Mapping[str, nn.Linear], statistics: Mapping[str, Statistics], ways: Mapping[str, Rounding]) -> pd.DataFrame:
    """Relative squared output error of each layer under each way: a tidy table with columns layer, way, error."""
    rows = []
    for name, layer in progress(list(layers.items()), "layers", leave=False):
        weight, seen = layer.weight.data, statistics[name]
        for way, rounding in ways.items():
            rows.append({"layer": short_name(name), "way": way, "error": output_error(rounding(weight, seen), weight, seen.hessian)})
    return pd.DataFrame(rows)


def group_size_table(weight: Tensor, sizes: Iterable[int], bits: Iterable[int]) -> pd.DataFrame:
    """Stored bits a weight and relative squared error of RTN, a row for every width and every group size that divides the rows."""
    rows, dividing = [], [size for size in sizes if weight.shape[1] % size == 0]
    for size, width in itertools.product(dividing, bits):
        quantized = rtn(weight, width, size)
        error = float((quantized.dequantize() - weight).square().sum() / weight.float().square().sum())
        rows.append({"group": size, "bits": width, "bits/weight": quantized.bits_per_weight, "relative squared error": error})
    return pd.DataFrame(rows)


def damping_curves(
    layers: Mapping[str, nn.Linear], statistics: Mapping[str, Statistics], dampings: Sequence[float], group_size: int
) -> dict[str, list[tuple[float, float]]]:
    """(damping, relative output error) of GPTQ at 4 bits for each layer, by its short name."""
    curves = {}
    for name, layer in layers.items():
        weight, hessian = layer.weight.data, statistics[name].hessian
        errors = [output_error(gptq(weight, hessian, 4, group_size, damping=damping).dequantize(), weight, hessian) for damping in dampings]
        curves[short_name(name)] = list(zip(dampings, errors, strict=True))
    return curves


def exponent_gains(
    layers: Mapping[str, nn.Linear], statistics: Mapping[str, Statistics], magnitudes: Mapping[str, Tensor], group_size: int
) -> dict[str, float]:
    """What share of RTN's output error at 4 bits the best exponent of AWQ's scale removes, by layer, with `magnitudes` for mean |x|."""
    gains = {}
    for name, layer in layers.items():
        points = sweep_exponents(layer.weight.data, magnitudes[name], statistics[name].hessian, 4, group_size)
        gains[short_name(name)] = 1 - min(error for _, error in points) / points[0][1]
    return gains


def calibration_curves(lesson: Lesson, ways: Mapping[str, Rounding], counts: Iterable[int]) -> dict[str, dict[int, float]]:
    """KL to the original when every layer of the lesson's sample is quantized in each of `ways` from statistics of only the first `count`
    calibration windows. A way that gives the weights of the count before, as a control that no text changes, is not measured again."""
    found = {way: dict[int, float]() for way in ways}
    before: dict[str, tuple[str, float]] = {}
    for count in progress(sorted(set(counts)), "calibration", leave=False):
        seen = lesson.statistics(lesson.calibration[:count])
        for way, rounding in ways.items():

            def change(name: str, weight: Tensor, by: Rounding = rounding, seen: Mapping[str, Statistics] = seen) -> Tensor:
                return by(weight, seen[name])

            with lesson.with_weights(change, lesson.sample, costly=True) as model:
                weights = digest(layer.weight.data for layer in lesson.sample.values())
                known, kl = before.get(way, ("", 0.0))
                if known != weights:
                    kl = measure_quality(model, lesson.evaluation, lesson.expected).kl or 0.0
            before[way], found[way][count] = (weights, kl), kl
        del seen, change  # before the next statistics are made
    return found


def digest(tensors: Iterable[Tensor]) -> str:
    """A hash of the tensors' values."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.cpu().numpy().tobytes())
    return found.hexdigest()


def weight_hashes(made: Artifact) -> dict[str, str]:
    """The hash of each of an artifact's weight files, by name, read a little at a time."""
    files = sorted(made.path.glob("*.safetensors"))
    return {file.name: hashlib.file_digest(file.open("rb"), "sha256").hexdigest() for file in files}


def eight_bits(lesson: Lesson) -> dict[str, Quality]:
    """INT8, measured: of weights alone; of weights and activations; of both once SmoothQuant has divided the largest activation channels,
    which the weights then carry; and of the same with one stored scale for a layer's activations. Weights have a scale a row, activations
    one a token but in the last row; each row differs from the one before in one thing."""
    names = {
        "weights": "rtn-w8grow-sym", "weights and activations": "rtn-w8a8", "the same, migrated": "smooth-rtn-w8a8",
        "the same, one stored scale": "smooth-rtn-w8a8-static",
    }  # fmt: skip
    recipes = {row: parse(name) for row, name in names.items()}
    lesson.walk_together(list(recipes.values()))
    found = {}
    for row, recipe in recipes.items():
        try:
            found[row] = lesson.evaluate(recipe.name, lesson.artifact(recipe))
        except UserError as error:  # experts, whose activations transformers does not show one by one
            print(error)
    return found


def new_version(lesson: Lesson, tuned: Tuned, artifact: Artifact, rounding: Callable[[Tensor], Tensor]) -> tuple[Quality, Quality]:
    """How far an `artifact` of the original is from a new version of it, the original with a `tuned` adapter in it, and how far the
    version itself is once its decoder layers are rounded anew."""
    layers = decoder_layers(lesson.reference)

    def anew(name: str, weight: Tensor) -> Tensor:
        version = tuned.merged(name, weight)
        return rounding(version) if name in layers else version

    with lesson.with_weights(tuned.merged, tuned.factors) as version:
        expected = kept_logits(version, lesson.evaluation.split(1), Path(lesson.work))
        old = measure_quality(lesson.predictor(artifact), lesson.evaluation, expected)
    with lesson.with_weights(anew, tuned.factors) as rounded:
        return old, measure_quality(rounded, lesson.evaluation, expected)


@torch.no_grad()
def folding_difference(source: OpenedModel, windows: Tensor) -> dict[str, float]:
    """By how much, relative to its size, the first block's output moves when AWQ's scales are folded in and nothing is rounded.

    `control`: the same with the norms put back as they were, so that nothing undoes the scales of the layers after them.
    """
    skeleton = Skeleton(source, "cpu")
    with Scratch() as work:
        hidden = Activations(work / "hidden", (*windows.shape, skeleton.layout.hidden))
        skeleton.embed(windows, hidden)
        block = skeleton.block(0, windows.shape[1])
        block.groups, block.experts = find_groups(block, hidden.pick(torch.arange(1)))
        layers = tuple(f"{name}." for name in block.layers)
        norms = {name: part.clone() for name, part in block.module.state_dict().items() if not name.startswith(layers)}
        before = torch.cat(list(block.outputs(hidden, 4)))

        def moved() -> float:
            return float((torch.cat(list(block.outputs(hidden, 4))) - before).norm() / before.norm())

        fold_scales(block, block.observe(hidden, 4), lambda weight, magnitude, square: best_scale(weight, magnitude, square, 4, -1))
        folded = moved()
        block.module.load_state_dict(norms, strict=False)
        return {"folded": folded, "control": moved()}


def obq_codes(weight: Tensor, hessian: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Optimal Brain Quantization as it was before GPTQ made it fast: codes of `weight` [out, in] on one grid a row, columns in order.

    Each column is rounded, the rest takes the error over, w ← w − e·[H⁻¹]_j,: / [H⁻¹]_jj, and column j is then struck out of H⁻¹ by a
    step of elimination (GPTQ's paper, equations 2 and 3). `hessian` with its damping; float64.
    """
    work, inverse = weight.double().clone(), torch.linalg.inv(hessian.double())
    codes = torch.empty_like(weight, dtype=torch.uint8)
    for j in range(weight.shape[1]):
        code = round_to_grid(work[:, j, None].float(), scale, zero, bits)[:, 0]
        codes[:, j] = code.to(torch.uint8)
        error = (work[:, j] - ((code - zero) * scale).double()) / inverse[j, j]
        work -= torch.outer(error, inverse[j])
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes


def same_codes(layer: nn.Linear, seen: Statistics, recipe: Integers, stored: Tensor) -> int:
    """How many weights of a layer have the same code when it is quantized alone, by GPTQ as `recipe` has it and from the statistics of its
    inputs, as in `stored` [out, in]: what came back of it where others were quantized too. A code that differs moves a weight by a step."""
    options = (recipe.bits, recipe.group_size, recipe.symmetric, recipe.order, recipe.search)
    alone, _ = compensated(layer.weight.data, seen.attended(), *options, trust=seen.trust)
    step = alone.scales.abs().repeat_interleave(layer.in_features // alone.scales.shape[1], dim=1)
    return int(((stored.to(step) - alone.dequantize()).abs() < step / 2).sum())


def mean_errors(table: pd.DataFrame) -> dict[str, float]:
    """Geometric mean over the layers of each way's error, ways in the table's order."""
    logs = np.log(table["error"].clip(lower=1e-12))
    return {way: float(np.exp(logs[table["way"] == way].mean())) for way in table["way"].unique()}


def top_channels(magnitude: Tensor, share: float) -> Tensor:
    """The `share` of channels with the largest mean |x|: int64 indices, at least one."""
    return magnitude.topk(max(1, round(share * len(magnitude)))).indices


def random_channels(magnitude: Tensor, share: float, seed: int = 0) -> Tensor:
    """As many channels, drawn at random: the negative control."""
    return torch.randperm(len(magnitude), generator=torch.Generator().manual_seed(seed))[: max(1, round(share * len(magnitude)))]


def short_name(name: str) -> str:
    """model.layers.3.mlp.down_proj → 3.down_proj; model.layers.3.mlp.experts.7.up_proj → 3.7.up_proj."""
    block, experts, kind = layer_place(name)
    return ".".join([str(block), *experts, kind])


def layer_changes(plain: Mapping[str, float], ways: Mapping[str, Mapping[str, float]], uneven: Mapping[str, float]) -> pd.DataFrame:
    """What each way takes off the plain output error of every layer (by full name), in %; columns layer, kind, uneven, way, removed.

    `uneven` is the largest over the median mean |x| of a layer's input channels, by short name.
    """
    rows = []
    for (way, errors), name in itertools.product(ways.items(), plain):
        layer = short_name(name)
        removed = 100 * (1 - errors[name] / plain[name])
        rows.append({"layer": layer, "kind": layer.rpartition(".")[2], "uneven": uneven[layer], "way": way, "removed": removed})
    return pd.DataFrame(rows)


def where_it_helps(table: pd.DataFrame) -> list[Sentence]:
    """One sentence for each way in a table of `layer_changes`: how often it hurts, and whether unevenness goes with the gain."""
    sentences = []
    for way, part in table.groupby("way", sort=False):
        worse = part[part["removed"] < 0].sort_values("removed")
        together = part["uneven"].rank().corr(part["removed"].rank())
        kinds = part.groupby("kind")["removed"].mean().sort_values()
        removed = Sentence(
            "{way}: {mean:.1f} % removed on average, most from {first} ({most:.1f} %), least from {last} ({least:.1f} %)",
            way=way, mean=part["removed"].mean(), first=kinds.index[-1], most=kinds.iloc[-1], last=kinds.index[0], least=kinds.iloc[0],
        )  # fmt: skip
        hurt = Sentence("{count} of {layers} layers made worse", count=len(worse), layers=len(part))
        if len(worse):
            name, by = worse.iloc[0]["layer"], -worse.iloc[0]["removed"]
            hurt = Sentence("{hurt}, worst {layer} by {by:.1f} %", hurt=hurt, layer=name, by=by)
        related = Sentence("rank correlation of unevenness and gain over plain rounding {together:+.2f}", together=together)
        if not beyond_chance(together, len(part)):
            related = Sentence("{measured}, which chance gives too", measured=related)
        elif together > 0:
            related = Sentence("{measured}: more is removed where channels are more uneven", measured=related)
        else:
            related = Sentence("{measured}: less is removed where channels are more uneven", measured=related)
        sentences.append(joined("; ", [removed, hurt, related]))
    return sentences


def cost(name: str, made: Artifact) -> str:
    """What quantizing took, in one sentence, in the language that is spoken."""
    return say(
        "{name}: {seconds:.1f} s on {device}, peak memory {peak:.2f} GB, checkpoint {size:.1f} MB",
        name=name, seconds=made.seconds, device=made.device, peak=made.peak_bytes / 1e9, size=made.disk_bytes / 1e6,
    )  # fmt: skip
