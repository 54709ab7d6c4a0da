"""What a run of lessons on a model will take, and what stands in its way: all that can be known before anything starts.

Of a hub id only the configuration and the tokenizer are fetched. The command line and the page of `qlab lab` show the same forecast.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from qlab import ROOT
from qlab.models.locating import is_hub_id, still_to_fetch
from qlab.models.opening import found_device, locate
from qlab.models.resting.choosing import WHOLE, free_on, held, sizes_of
from qlab.support.processes.process import run_isolated
from qlab.workbook.batch.costs import HALF, Taken, cost_of
from qlab.workbook.batch.notes import Note, notes_on, rounded_before, too_small, too_small_gpu
from qlab.workbook.batch.runner import prepare, unfit
from qlab.workbook.language.amounts import bytes_said, time_said
from qlab.workbook.language.spoken import gettext, say
from qlab.workbook.lesson import said_at_rest
from qlab.workbook.reader.about import NOTEBOOKS, about


@dataclass(frozen=True)
class Expected:
    """A lesson with its title and what it takes; `left_out`: why it will not run on this model."""

    lesson: str
    title: str
    taken: Taken
    left_out: str = ""


@dataclass(frozen=True)
class Forecast:
    """Of a run on `model`, which has so many `weights`, on `device`. Bytes: `fetched` from the hub, `disk` for that, for a plain copy of
    a model whose weights are rounded, and for all that lessons make; `memory` at the peak, and of the `gpu`. `holding`: how lessons hold
    the model, and `rests`: what it takes so."""

    model: str
    weights: int
    device: str
    fetched: int
    disk: float
    memory: float
    seconds: float
    lessons: list[Expected]
    notes: list[Note]
    gpu: float = 0.0
    holding: str = WHOLE
    rests: float = 0.0

    @property
    def stops(self) -> bool:
        """Whether the run would end with an error."""
        return any(note.stops for note in self.notes)

    def as_dict(self) -> dict[str, Any]:
        """As JSON can hold it: all figures, and as they are shown: sentences, and a table."""
        columns, rows = as_table(self)
        return asdict(self) | {"stops": self.stops, "summary": summary(self), "columns": columns, "rows": rows}


def forecast(lessons: Sequence[str], model: str, given: Mapping[str, str]) -> Forecast:
    """What `qlab run` with these lessons, this model and these parameters will take.

    Raises:
        UserError: a model that cannot be used, or a parameter that makes no sense.
    """
    source = locate(model, weights=False)
    values = prepare(list(lessons), model, given, weights=False)
    device = next(iter({found_device(chosen["device"]) for chosen in values.values()}), "cpu")
    on_gpu = torch.device(device).type == "cuda"
    room = run_isolated(free_on, device).value if on_gpu else free_on(device)  # a process that asks a GPU keeps some of its memory
    sizes = sizes_of(source)
    holding = held(sizes, room, on_gpu)
    expected = [
        Expected(
            lesson,
            about(NOTEBOOKS / f"{lesson}.ipynb").title,
            cost_of(lesson, source, chosen, holding, on_gpu, room),
            unfit(lesson, source),
        )
        for lesson, chosen in values.items()
    ]
    run = [each.taken for each in expected if not each.left_out]
    every = source.layout.weights
    fetched = still_to_fetch(model) if source.on_paper and is_hub_id(model) else 0
    plain = HALF * every if rounded_before(source) else 0.0
    disk = fetched + plain + sum(taken.disk for taken in run) + max((taken.passing for taken in run), default=0.0)
    memory, gpu = (max((getattr(taken, part) for taken in run), default=0.0) for part in ("memory", "gpu"))
    work = ROOT / next(iter(values.values()))["work"]
    notes = [*notes_on(source, values), *too_small(source, memory, psutil.virtual_memory().available, disk, free_disk(work))]
    notes += [too_small_gpu(device, gpu, room)] if on_gpu and gpu > room else []
    seconds = sum(taken.seconds for taken in run)
    return Forecast(source.name, every, device, fetched, disk, memory, seconds, expected, notes, gpu, holding, sizes.stored)


def free_disk(folder: Path) -> int:
    """Bytes that are free where a folder lies, or will lie."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def summary(found: Forecast) -> list[str]:
    """The forecast in sentences."""
    said = [
        say(
            "{model} has {weights:,.1f} million weights. The lessons compute on {device}.",
            model=found.model,
            weights=found.weights / 1e6,
            device=found.device,
        ),
        say(
            "Predicted for all of them: {memory} of memory, {disk} of disk, about {time}.",
            memory=bytes_said(found.memory),
            disk=bytes_said(found.disk),
            time=time_said(found.seconds),
        ),
    ]
    if found.gpu:
        said.append(say("Of the GPU's memory: {memory}.", memory=bytes_said(found.gpu)))
    if found.holding != WHOLE:
        said.append(said_at_rest(4.0 * found.weights, found.rests, found.holding))
    if found.fetched:
        said.append(say("{size} of this come from the hub first.", size=bytes_said(found.fetched)))
    return said


def as_table(found: Forecast) -> tuple[list[str], list[list[str]]]:
    """The lessons in a table: what each takes, or why it is left out."""
    on_gpu = [gettext("memory of the GPU")] if found.gpu else []
    columns = [gettext("lesson"), gettext("memory"), *on_gpu, gettext("disk"), gettext("time")]
    rows = []
    for each in found.lessons:
        name, taken = f"{each.lesson[:2]} {each.title}", each.taken
        if each.left_out:
            rows.append([name, *["—"] * (len(columns) - 2), say("left out: {reason}", reason=each.left_out)])
        else:
            gpu = [bytes_said(taken.gpu)] if on_gpu else []
            rows.append([name, bytes_said(taken.memory), *gpu, bytes_said(taken.disk + taken.passing), time_said(taken.seconds)])
    return columns, rows
