"""Artifacts: a finished folder with a quantized checkpoint and a manifest. It exists whole or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qlab.evaluate.memory import disk_bytes
from qlab.model import Source, locate
from qlab.process import run_isolated
from qlab.recipes import Recipe, describe

MANIFEST = "qlab.json"
LIBRARIES = ("torch", "transformers", "autoawq", "auto-gptq", "bitsandbytes", "gguf")


@dataclass(frozen=True)
class Artifact:
    """A checkpoint at `path`; `manifest` says what it was made from, by what, and what that took."""

    path: Path
    manifest: dict[str, Any]

    @property
    def seconds(self) -> float:
        """Seconds that quantizing took when the artifact was made."""
        return self.manifest["seconds"]

    @property
    def peak_bytes(self) -> int:
        """Peak memory of the process that made it."""
        return self.manifest["peak_bytes"]

    @property
    def disk_bytes(self) -> int:
        return disk_bytes(self.path)

    @property
    def source(self) -> Source:
        return locate(str(self.path))


def make_artifact(recipe: Recipe, source: Source, windows: Tensor, work: str) -> Artifact:
    """Quantize `source` by `recipe` with the calibration `windows`, or take the artifact that the same inputs made before.

    It lies in `work`/<model>-<hash>/<recipe>. Quantizing runs in a process of its own.

    Raises:
        UserError: what the recipe cannot do with this model.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    inputs = {
        "model": source.fingerprint,
        "recipe": describe(recipe),
        "calibration": {"sha256": hashlib.sha256(windows.numpy().tobytes()).hexdigest()[:16], "windows": list(windows.shape)},
        "versions": {name: version(name) for name in LIBRARIES},
        "device": "cuda" if torch.cuda.is_available() else "cpu",  # the libraries compute in half precision on one, FP32 on the other
    }
    folder = Path(work) / f"{source.path.name}-{source.fingerprint[:8]}" / recipe.name
    if (folder / MANIFEST).exists():
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["inputs"] == inputs:
            return Artifact(folder, manifest)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{recipe.name}-") as unfinished:
        out = Path(unfinished) / recipe.name
        out.mkdir()
        outcome = run_isolated(recipe.quantize, source, windows, out)
        manifest = {"inputs": inputs, "seconds": outcome.seconds, "peak_bytes": outcome.peak_bytes}
        (out / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        out.rename(folder)
    return Artifact(folder, manifest)
