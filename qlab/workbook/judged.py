"""Evaluations that an earlier lesson, or an earlier run of this one, has made with the same inputs.

Several lessons put the same artifact into their tables, and the original in BF16. Each figure lies beside the artifact, under all that it
depends on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qlab.evaluate.quality import Quality
from qlab.support.disk.whole import write_whole
from qlab.support.versions import code_hash, version_of


def judged(
    place: Path, candidate: Any, reference: str, windows: Tensor, dtype: torch.dtype, device: str, judge: Callable[[], Quality]
) -> Quality:
    """The quality of what lies, or would lie, at `place` against the model with the fingerprint `reference` on `windows`: as kept, or as
    `judge` finds it. `candidate` says what is judged, as JSON can: an artifact's manifest, say.

    Raises:
        OSError: it cannot be written.
    """
    inputs = {
        "candidate": candidate, "reference": reference, "windows": hashlib.sha256(windows.numpy().tobytes()).hexdigest(),
        "shape": list(windows.shape), "dtype": str(dtype), "device": device,
        "versions": {name: version_of(name) for name in ("torch", "transformers")}, "code": code_hash(),
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    path = place.with_name(f".{place.name}-quality-{key}.json")
    with suppress(OSError, ValueError, TypeError):  # there is none, or it is damaged
        return Quality(**json.loads(path.read_text()))
    found = judge()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(found.as_dict()) + "\n")
    return found
