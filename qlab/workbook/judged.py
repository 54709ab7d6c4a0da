"""Evaluations of artifacts that an earlier lesson, or an earlier run of this one, has made with the same inputs.

Several lessons put the same artifact into their tables. Each figure lies beside the artifact, under all that it depends on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from qlab.artifacts.artifact import Artifact
from qlab.evaluate.quality import Quality
from qlab.support.disk.whole import write_whole
from qlab.support.versions import version_of


def judged(artifact: Artifact, reference: str, windows: Tensor, dtype: torch.dtype, device: str, judge: Callable[[], Quality]) -> Quality:
    """The quality of `artifact` against the model with the fingerprint `reference` on `windows`: as kept, or as `judge` finds it.

    Raises:
        OSError: it cannot be written.
    """
    inputs = {
        "artifact": artifact.manifest, "reference": reference, "windows": hashlib.sha256(windows.numpy().tobytes()).hexdigest(),
        "shape": list(windows.shape), "dtype": str(dtype), "device": device,
        "versions": {name: version_of(name) for name in ("qlab", "torch", "transformers")},
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    path = artifact.path.parent / f".{artifact.path.name}-quality-{key}.json"
    with suppress(OSError, ValueError, TypeError):  # there is none, or it is damaged
        return Quality(**json.loads(path.read_text()))
    found = judge()
    write_whole(path, json.dumps(found.as_dict()) + "\n")
    return found
