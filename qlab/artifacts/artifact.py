"""Artifacts: a finished folder with a quantized checkpoint and a manifest. It exists whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qlab.artifacts.budget import disk_needed
from qlab.artifacts.card import Original, original_of, write_card
from qlab.artifacts.devices import walk_on
from qlab.artifacts.going_on import LOCK, clear_away, walk_to_go_on, work_folder
from qlab.artifacts.manifest import COST, MANIFEST, Cost, Manifest, read_note
from qlab.artifacts.placing import check_place, put
from qlab.models.opening import OpenedModel, locate
from qlab.recipes import Details, Fitted, Recipe, WalkedRecipe, describe, details
from qlab.support.disk.lock import locked
from qlab.support.disk.room import room_for
from qlab.support.disk.scratch import Scratch, discard
from qlab.support.errors import UserError
from qlab.support.memory import disk_bytes
from qlab.support.precision import multiplies_bfloat16
from qlab.support.processes.process import keep_heap, peak_bytes, run_isolated
from qlab.support.stages import stage
from qlab.support.versions import version_of
from qlab.walk.state.journal import Journal
from qlab.walk.walk import encoded_parts

METHODS = 3  # raised when a recipe makes other bytes than before, or takes another time: what was made before is made again
LIBRARIES = ("qlab", "torch", "transformers", "autoawq", "auto-gptq", "bitsandbytes", "gguf", "xllamacpp")


@dataclass(frozen=True)
class Artifact:
    """A checkpoint at `path`; `manifest` says what it was made from, by what, and what was found; `cost` what that took."""

    path: Path
    manifest: dict[str, Any]
    cost: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> Artifact | None:
        """The finished artifact at `path`, if there is one.

        Raises:
            UserError: its manifest is damaged, or another program's.
        """
        if not (path / MANIFEST).exists() or not (path / COST).exists():
            return None
        return cls(path, read_note(path / MANIFEST, Manifest).model_dump(), read_note(path / COST, Cost).model_dump())

    @property
    def device(self) -> str:
        """What it was quantized on."""
        return self.manifest["inputs"]["device"]

    @property
    def seconds(self) -> float:
        """Seconds that quantizing took when the artifact was made."""
        return self.cost["seconds"]

    @property
    def peak_bytes(self) -> int:
        """Peak memory of the process that made it."""
        return self.cost["peak_bytes"]

    @property
    def errors(self) -> dict[str, float]:
        """Relative squared error of each quantized layer's output on the calibration text; empty where the method has no such thing."""
        return self.manifest["errors"]

    @property
    def disk_bytes(self) -> int:
        return disk_bytes(self.path)

    @property
    def source(self) -> OpenedModel:
        return locate(str(self.path))


def inputs_of(recipe: Recipe, source: OpenedModel, windows: Tensor, device: str) -> dict[str, Any]:
    """All that an artifact's bytes depend on."""
    return {
        "model": source.fingerprint,
        "recipe": describe(recipe),
        "calibration": {"sha256": hashlib.sha256(windows.numpy().tobytes()).hexdigest()[:16], "windows": list(windows.shape)},
        "versions": {name: version_of(name) for name in LIBRARIES} | recipe.versions(),
        "device": device,
        "methods": METHODS,
        "products": "bf16" if multiplies_bfloat16(torch.device(device)) else "fp32",
    }


def artifact_folder(recipe: Recipe, source: OpenedModel, work: str) -> Path:
    """Where `make_artifact` puts the artifact of `recipe`: `work`/<model>-<hash>/<recipe>."""
    return Path(work) / model_folder(source) / recipe.name


def model_folder(source: OpenedModel) -> str:
    """What a model is called in folders and tables: its last name, and a part of its hash that tells two of one name apart."""
    name = source.name.rpartition("/")[2] if "/" in source.name else source.path.name  # the folder of a hub model is called by its commit
    return f"{name}-{source.fingerprint[:8]}"


def quantize_on(device: str, recipe: Recipe, source: OpenedModel, windows: Tensor, out: Path) -> Details:
    """`recipe.quantize` in a process of its own, which sees no GPU where the CPU is asked for: the libraries take any that they see."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    keep_heap()  # for the libraries; a walk sets it as it needs it
    return recipe.quantize(source, windows, out, device)


def known_artifact(recipe: Recipe, source: OpenedModel, windows: Tensor, work: str, device: str = "cpu") -> Artifact | None:
    """The artifact that `make_artifact` would take, without making any; None where it is not there."""
    known = Artifact.open(artifact_folder(recipe, source, work))
    return known if known and known.manifest["inputs"] == inputs_of(recipe, source, windows, device) else None


def make_artifact(
    recipe: Recipe, source: OpenedModel, windows: Tensor, work: str, read: Sequence[dict[str, Any]] = (), device: str = "cpu"
) -> Artifact:
    """Quantize `source` by `recipe` with the calibration `windows`, or take the artifact that the same inputs made before.

    It lies in `work`/<model>-<hash>/<recipe>. Quantizing runs in a process of its own; who wants the same artifact meanwhile waits.
    `read` says what the windows were cut from (qlab.models.texts.windows.Read); it stands in the manifest and changes nothing else.

    Raises:
        UserError: what the recipe cannot do with this model, something in the artifact's place that qlab did not make, or a full disk.
        OSError: the disk is not writable; nothing is left behind.
    """
    inputs = inputs_of(recipe, source, windows, device)
    folder = artifact_folder(recipe, source, work)
    check_place(folder, source.path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        locked(folder.parent / f".{recipe.name}.lock", str(folder), wait=True),
        Scratch(folder.parent) as unfinished,
        room_for(folder.parent),
    ):
        known = Artifact.open(folder)
        if known and known.manifest["inputs"] == inputs:
            return known
        out = unfinished / recipe.name
        out.mkdir()
        outcome = run_isolated(quantize_on, device, recipe, source, windows, out)
        details = outcome.value | {"calibration": list(read)}
        cost = details.pop("cost", {"seconds": outcome.seconds, "peak_bytes": outcome.peak_bytes})
        return finish(out, folder, original_of(source), inputs, details, cost)


def finish(out: Path, folder: Path, original: Original, inputs: dict[str, Any], details: dict[str, Any], cost: dict[str, Any]) -> Artifact:
    """Write card, manifest and cost into the complete folder `out` and put it in its place, as qlab.artifacts.placing does."""
    manifest = {"inputs": inputs, "errors": {}, "notes": {}} | details
    write_card(out, folder.name, manifest, original)
    manifest["files"] = sorted(file.name for file in out.iterdir())
    (out / COST).write_text(json.dumps(cost, indent=2) + "\n")
    (out / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    put(out, folder)
    return Artifact(folder, manifest, cost)


def fit(source: OpenedModel, recipes: Sequence[WalkedRecipe], strict: bool = False) -> list[Fitted]:
    """The recipes as this model can take them, each once, as far as its names and configuration tell it, before any work.

    Raises:
        UserError: the model is an artifact, its checkpoint is not complete, its blocks cannot be run alone, or a recipe cannot store
            this model; with `strict`, one could store it only in another way than asked.
    """
    beside = source.path if source.path.is_dir() else source.path.parent
    if (beside / MANIFEST).exists():
        raise UserError(f"{source.name} is quantized already: it is an artifact of qlab (see its {MANIFEST}). Give the original model")
    source.check_complete()
    if source.not_walked:
        raise UserError(source.not_walked)
    found = dict[str, Fitted]()
    for recipe in recipes:
        if strict:
            recipe.check(source)
        fitted = recipe.fitted(source)
        fitted.recipe.check(source)
        if strict and fitted.remarks:
            raise UserError(f"{fitted.remarks[0]}; without --strict the rest is quantized")
        found.setdefault(fitted.recipe.name, fitted)
    return list(found.values())


def quantize_model(
    source: OpenedModel, recipes: Sequence[WalkedRecipe], windows: Tensor, out: Path, batch: int | None = None, device: str = "cpu",
    read: Sequence[dict[str, Any]] = (), beside: Sequence[str] = (), wait: bool = False,
) -> list[Artifact]:  # fmt: skip
    """Quantize by all `recipes`, fitted to the model, in one walk, each into the folder `out`/<recipe>; interrupted, the same call goes on.

    `read` says for the manifest what the windows were cut from; `beside`: further devices, of `device`'s kind, that share it. With `wait`,
    another process that works in `out` is waited for.

    Raises:
        UserError: a model or layer that a recipe cannot take, something at `out`/<recipe> that qlab did not make, or another process
            that works in `out`, or a full disk; what is finished is kept for the next call then, and no artifact is half there.
        OSError: the disk is not writable; likewise.
    """
    fitted = fit(source, recipes)
    recipes = [each.recipe for each in fitted]
    wanted = {recipe.name: inputs_of(recipe, source, windows, device) for recipe in recipes}
    for name in wanted:
        check_place(out / name, source.path)
    if unfinished(recipes, wanted, out):
        stored = {"stored": source.checkpoint.description} if source.checkpoint.quantized else {}
        about = {each.recipe.name: {"asked": each.asked, "calibration": list(read)} | stored for each in fitted}
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / LOCK, str(out), wait), room_for(out, disk_needed(source, recipes, tuple(windows.shape))):
            if missing := unfinished(recipes, wanted, out):
                _walk(source, recipes, missing, wanted, about, windows, out, batch, [device, *beside])
    clear_away(recipes, wanted, out)
    return [artifact for name in wanted if (artifact := Artifact.open(out / name))]


def unfinished(recipes: Sequence[WalkedRecipe], wanted: dict[str, dict[str, Any]], out: Path) -> list[WalkedRecipe]:
    """Those of `recipes` that have no artifact in `out` of the inputs that are `wanted`."""
    known = {name: Artifact.open(out / name) for name in wanted}
    return [recipe for recipe in recipes if (found := known[recipe.name]) is None or found.manifest["inputs"] != wanted[recipe.name]]


def _walk(
    source: OpenedModel,
    recipes: Sequence[WalkedRecipe],
    missing: Sequence[WalkedRecipe],
    wanted: dict[str, dict[str, Any]],
    about: dict[str, dict[str, Any]],
    windows: Tensor,
    out: Path,
    batch: int | None,
    devices: Sequence[str],
) -> None:
    walked = walk_to_go_on(recipes, missing, wanted, out)
    work, original = work_folder(walked, wanted, out), original_of(source)
    work.mkdir(exist_ok=True)
    try:
        with stage("rest"):
            found = walk_on(devices, source, walked, windows, work, batch)
    except Exception:
        if not any(Journal.open(path).blocks for path in work.rglob("journal.json")):  # nothing that the same call could go on from
            shutil.rmtree(work)
        raise
    for recipe in missing:
        started, folder = time.perf_counter(), work / "finished" / recipe.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with stage("assemble"):
            recipe.assemble(source, encoded_parts(work, recipe.name), folder, found.journal.largest[recipe.name])
        seconds = found.journal.seconds[recipe.name] + time.perf_counter() - started
        cost = {"seconds": seconds, "peak_bytes": max(found.peak_bytes, peak_bytes())}
        told = about[recipe.name] | details(recipe, source, found.journal)
        finish(folder, out / recipe.name, original, wanted[recipe.name], told, cost)
    with stage("clean up"):
        discard(work)
