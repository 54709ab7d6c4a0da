"""A release: a model, with an adapter or without, merged, quantized, measured, proved, and only then put where it is served from.

`OUT/current` is a link to the release being served. It moves at once, and only to a release that passed every gate and whose
artifact was really served; a refused one leaves it as it is. Every attempt is a line of `OUT/history.jsonl`.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qlab.artifacts.artifact import fit, inputs_of, quantize_model
from qlab.artifacts.budget import disk_needed
from qlab.artifacts.card import Figures, Original, renew_card
from qlab.artifacts.going_on import LOCK
from qlab.artifacts.licence import CARD, licence_of
from qlab.artifacts.manifest import COST
from qlab.artifacts.placing import check_place, put
from qlab.evaluate.quality import measure_quality
from qlab.models.loading import load
from qlab.models.opening import OpenedModel, locate
from qlab.recipes import WalkedRecipe
from qlab.release import adapter as adapters
from qlab.release.history import CURRENT, HISTORY, record, settle
from qlab.serve.proof import Proof, prove
from qlab.serve.runtimes.runtime import Runtime, check, require
from qlab.serve.server import on_free_port, serving
from qlab.support.disk.lock import locked
from qlab.support.disk.room import room_for
from qlab.support.disk.scratch import Scratch, discard
from qlab.support.errors import UserError

NAME = "[0-9a-f]{12}"  # of a release
FIGURES = {
    "kl": "KL divergence to the merged model, nats/token",
    "top1": "same likeliest token as the merged model, share",
    "perplexity": "perplexity over that of the model before the adapter",
}


@dataclass(frozen=True)
class Gate:
    """A bound on one of FIGURES: at most for all but top1, of which at least."""

    figure: str
    bound: float

    def passes(self, value: float) -> bool:
        return value >= self.bound if self.figure == "top1" else value <= self.bound

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Such as kl=0.05.

        Raises:
            UserError: no such figure, or no positive number.
        """
        figure, _, bound = text.partition("=")
        try:
            value = float(bound)
        except ValueError:
            value = float("nan")
        if figure not in FIGURES or not 0 < value < float("inf") or (figure == "top1" and value > 1):
            raise UserError(
                f"gate {text[:60]!r}: expected one of {', '.join(FIGURES)}, '=' and a positive number, of top1 at most 1, such as kl=0.05"
            )
        return cls(figure, value)


GATES = (Gate("kl", 0.1), Gate("top1", 0.8), Gate("perplexity", 1.05))


@dataclass(frozen=True)
class Release:
    """What became of an attempt: `figures` by name of FIGURES, `refused` for what reasons, `path` of the artifact if there were none."""

    id: str
    figures: dict[str, float]
    refused: list[str]
    path: Path | None


def release(
    source: OpenedModel,
    adapter: Path | None,
    recipe: WalkedRecipe,
    calibration: Tensor,
    held_out: Tensor,
    runtime: Runtime,
    out: Path,
    gates: Sequence[Gate] = GATES,
    device: str = "cpu",
    read: Sequence[dict[str, Any]] = (),
) -> Release:
    """Merge, quantize with `calibration`, measure on `held_out` (both int64 [windows, length]), serve once, and move OUT/current.

    `read` says for the manifest what the calibration windows were cut from. Interrupted, the same call quantizes on from where it was.

    Raises:
        UserError: the runtime is missing, the adapter is damaged or of another model, the recipe cannot take the model, something at
            `out` is not qlab's, another process releases there, or the disk is full.
    """
    check(runtime, recipe.format, recipe.name)
    require(runtime)
    (fitted,) = fit(source, [recipe])
    made_from = inputs_of(fitted.recipe, source, calibration, device) | {
        "adapter": adapters.fingerprint(checked(adapter)) if adapter else None
    }
    name = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]
    check_out(out, name, source.path)
    out.mkdir(parents=True, exist_ok=True)
    needed = disk_needed(source, [fitted.recipe], tuple(calibration.shape)) + (merged_bytes(source) if adapter else 0)
    with locked(out / LOCK, str(out)), room_for(out, needed):
        settle(out)
        work = out / f".{name}"
        merged = merged_model(source, adapter, work)
        (artifact,) = quantize_model(merged, [recipe], calibration, work / "quantized", device=device, read=read)
        figures = measure(artifact.source, merged, source, held_out, device)
        refused = [
            f"{gate.figure} {figures[gate.figure]:.4g}, the gate is {gate.bound:g}"
            for gate in gates
            if not gate.passes(figures[gate.figure])
        ]
        if not refused:
            proof = served_once(runtime, artifact.path)
            refused = [f"{found.name}: {found.found}" for found in proof.checks if not found.passed]
        if not refused:
            original = Original(source.name, source.fingerprint, licence_of(source), made_from["adapter"] or "")
            renew_card(artifact.path, original, shown(figures, held_out, gates))
        note = {"release": name, "refused": refused, "figures": figures, "gates": [asdict(gate) for gate in gates], "inputs": made_from}
        if not refused and not same_files(artifact.path, out / name / artifact.path.name):  # what is being served stays where it is
            put(work / "quantized", out / name)
        record(out, note)
        discard(work)
    return Release(name, figures, refused, None if refused else out / CURRENT / artifact.path.name)


def check_out(out: Path, name: str, model: Path) -> None:
    """See that the release `name` of the model in the folder `model` can be put into `out` and recorded there, before any work.

    Raises:
        UserError: something stands in its place, or in that of the link or the history, that qlab did not make, or cannot be written.
    """
    check_place(out / name, model)
    link, notes = out / CURRENT, out / HISTORY
    if os.path.lexists(link) and not (link.is_symlink() and re.fullmatch(NAME, os.readlink(link))):
        raise UserError(f"{link} is no link to a release, and one shall lie there: move it away, or choose another --out")
    if os.path.lexists(notes) and (not notes.is_file() or notes.is_symlink() or not os.access(notes, os.W_OK)):
        raise UserError(f"{notes} is not a file that can be written, and the attempt is noted there: move it away, or choose another --out")
    if out.exists() and not os.access(out, os.W_OK | os.X_OK):
        raise UserError(f"{out} cannot be written: choose another --out")


def same_files(one: Path, other: Path) -> bool:
    """Whether two artifacts have the same files, byte by byte, but for what making them cost, and their cards."""
    names = {file.name for file in one.iterdir()} - {COST, CARD}
    there = {file.name for file in other.iterdir()} - {COST, CARD} if other.is_dir() else set()
    return names == there and len(filecmp.cmpfiles(one, other, names, shallow=False)[0]) == len(names)


def checked(adapter: Path) -> Path:
    """The adapter's folder, its files whole.

    Raises:
        UserError: as read_adapter.
    """
    adapters.read_adapter(adapter)
    return adapter


def merged_model(source: OpenedModel, adapter: Path | None, work: Path) -> OpenedModel:
    """`source` with the adapter, in the folder `work`; `source` itself where there is none."""
    if adapter is None:
        return source
    folder = work / "merged"
    if not folder.exists():
        work.mkdir(exist_ok=True)
        with Scratch(work) as unfinished:
            adapters.merge(source, adapter, unfinished / "merged")
            (unfinished / "merged").rename(folder)
    return locate(str(folder))


def merged_bytes(source: OpenedModel) -> float:
    """Bytes of `source` with an adapter merged into it, in FP16."""
    return 2.0 * source.layout.weights


@torch.inference_mode()
def measure(artifact: OpenedModel, merged: OpenedModel, before: OpenedModel, held_out: Tensor, device: str) -> dict[str, float]:
    """FIGURES of the artifact, on one and the same text."""
    quality = measure_quality(load(artifact, device=device), held_out, load(merged, device=device), "gate: artifact and merged model")
    base = measure_quality(load(before, device=device), held_out, label="gate: the model before")
    assert quality.kl is not None and quality.top1 is not None  # noqa: PT018
    return {"kl": quality.kl, "top1": quality.top1, "perplexity": quality.perplexity / base.perplexity}


def shown(figures: dict[str, float], held_out: Tensor, gates: Sequence[Gate]) -> Figures:
    """The figures of a release, as its card shows them."""
    count, length = held_out.shape
    passed = ", ".join(f"{gate.figure} {gate.bound:g}" for gate in gates)
    how = f"Measured before the release on {count} held-out windows of {length} tokens; the gates that it passed: {passed}."
    return Figures([(FIGURES[name], f"{value:.4g}", "") for name, value in figures.items()], how)


def served_once(runtime: Runtime, folder: Path) -> Proof:
    """The proof of the artifact, served for as long as that takes."""
    deployment = on_free_port(folder)
    with serving(runtime, deployment) as server:
        return prove(runtime, deployment, server)
