"""What lesson 6 measured under load, kept beside the model's artifacts for lesson 7, which runs in another process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from qlab.artifacts.artifact import model_folder
from qlab.evaluate.store.provenance import machine
from qlab.models.opening import OpenedModel
from qlab.serve.crowd import Served
from qlab.support.disk.whole import write_whole
from qlab.support.versions import code_hash

Loads = Mapping[str, Mapping[int, float]]  # tokens/s of all users by format, the nearest to the original first, and users at a time


def place_of(source: OpenedModel, work: str | Path) -> Path:
    """Where the loads of a model lie below `work`."""
    return Path(work) / model_folder(source) / ".loads.json"


def keep_loads(source: OpenedModel, work: str | Path, served: Sequence[Served]) -> None:
    """Keep the throughput of each of `served` that gave any, in their order.

    Raises:
        OSError: it cannot be written.
    """
    measured = {one.label: {level.concurrency: level.output_throughput for level in one.levels} for one in served if one.levels}
    place = place_of(source, work)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_whole(place, json.dumps({"machine": machine(), "code": code_hash(), "loads": list(measured.items())}) + "\n")


def kept_loads(source: OpenedModel, work: str | Path) -> Loads:
    """What was kept by this code on this machine; nothing where there is none such, or it is damaged."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        kept = json.loads(place_of(source, work).read_text())
        if (kept["machine"], kept["code"]) == (machine(), code_hash()):
            return {str(name): {int(users): float(rate) for users, rate in rates.items()} for name, rates in kept["loads"]}
    return {}
