"""Several artifacts in several runtimes, in turns, each in a process of its own; a crash or a time-out is a row that says so.

Loading a library and a model takes longer than timing it. So a process stays, idle, from one round to the next, while memory has room.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from qlab.evaluate.bandwidth import read_bandwidths
from qlab.evaluate.engines import RUNNERS, runners_of
from qlab.evaluate.runtime import Reading, RuntimeFigures, measuring, pooled, step_bytes
from qlab.models.opening import found_device
from qlab.support.errors import UserError
from qlab.support.memory import disk_bytes, free_bytes
from qlab.support.processes.process import Isolated, Overdue, run_isolated
from qlab.support.progress import progress

ABSENT = "is not on this machine"
LIMIT = 900.0  # seconds for one artifact in one runtime, loading included
NEEDED = 4  # bytes that must be free for a new process, for each of the artifact's on disk: FP16 as FP32, twice while it loads
BESIDE = 2e9  # and for Python and its libraries
SEEN = "CUDA_VISIBLE_DEVICES"  # of the environment: the GPUs that a process sees; of an empty list, none
DEVICE = re.compile(r"auto|cpu|cuda(?::(\d+))?")
Pair = tuple[str, str]
"""An artifact's name, a runtime's."""


@dataclass(frozen=True)
class Protocol:
    """How speeds are taken: tokens of the prompt (pp) and generated (tg), timed `repetitions` at least in each of `rounds`, `limit` seconds
    each; on the `device` auto (a GPU where there is one), cpu, cuda or such as cuda:1."""

    prompt_tokens: int = 512
    generated_tokens: int = 128
    repetitions: int = 5
    rounds: int = 1
    dtype: str = "auto"
    limit: float = LIMIT
    device: str = "auto"


@dataclass(frozen=True)
class Measured:
    """What came out for one artifact in one runtime: figures, or the `problem` that there are none."""

    name: str
    runtime: str
    figures: RuntimeFigures | None
    problem: str = ""


def measure_in_turns(folders: Mapping[str, Path], runtimes: Sequence[str], protocol: Protocol) -> list[Measured]:
    """Measure each of `folders` in every runtime of RUNNERS that runs its format (of `runtimes`, where some are named).

    The rounds go over all of them: a machine that grows slower or is busy for a while does so for all, and the spread shows it. A
    runtime that takes half a minute to start has its turn first, all of its timings in one, and is gone before the others come.

    Raises:
        UserError: a runtime that there is not, a folder that none runs, or a single timing, which has no spread.
    """
    if protocol.rounds * protocol.repetitions < 2:
        raise UserError("one timing has no spread: give two rounds or repetitions, or more")
    pairs = [(name, runtime) for name, folder in folders.items() for runtime in runners_of(folder, runtimes)]
    found: dict[Pair, list[Reading]] = {pair: [] for pair in pairs}
    problems: dict[Pair, str] = {
        (name, runtime): f"{RUNNERS[runtime].label} {ABSENT}: {RUNNERS[runtime].install}"
        for name, runtime in pairs
        if not RUNNERS[runtime].present()
    }
    able = sorted((pair for pair in pairs if pair not in problems), key=lambda pair: not RUNNERS[pair[1]].starts_slowly)
    later = [pair for pair in able if not RUNNERS[pair[1]].starts_slowly]
    turns = able + later * (protocol.rounds - 1)
    with Crew(folders, protocol) as crew:
        for place, pair in enumerate(progress(turns, "speeds", leave=False)):
            if pair in problems:
                continue
            try:
                found[pair].append(crew.measure(pair, last=pair not in turns[place + 1 :]))
            except (UserError, RuntimeError, OSError) as error:
                problems[pair] = in_one_line(error)
    figures: dict[Pair, RuntimeFigures] = {}
    try:
        with starting_on(protocol.device):
            figures = with_ceilings({pair: found[pair] for pair in able if pair not in problems})
    except (RuntimeError, OSError) as error:
        problems = dict.fromkeys(able, f"the ceiling could not be read: {in_one_line(error)}") | problems
    return [Measured(pair[0], RUNNERS[pair[1]].label, figures.get(pair), problems.get(pair, "")) for pair in pairs]


def check_device(name: str) -> None:
    """See that runtimes can be timed on the device `name`. A process of its own asks PyTorch for a GPU: this one would keep some of its
    memory.

    Raises:
        UserError: they cannot.
    """
    if not DEVICE.fullmatch(name):
        raise UserError(f"no device {name[:40]!r} to time runtimes on: expected auto, cpu, cuda, or such as cuda:1")
    if name not in ("auto", "cpu"):
        run_isolated(found_device, name)


@contextmanager
def starting_on(device: str) -> Iterator[None]:
    """Processes that are started within the context compute on `device`, whatever the library: on "cpu" they see no GPU, on cuda:1 that one
    alone, of those that this process sees."""
    match, before = DEVICE.fullmatch(device), os.environ.get(SEEN)
    if device == "cpu":
        os.environ[SEEN] = ""
    elif match and match[1]:
        seen = [match[1]] if before is None else before.split(",")[int(match[1]) :]
        if not seen:
            raise UserError(f"no device {device!r}: {SEEN} is {before!r}")
        os.environ[SEEN] = seen[0]
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(SEEN, None)
        else:
            os.environ[SEEN] = before


def with_ceilings(found: Mapping[Pair, Sequence[Reading]]) -> dict[Pair, RuntimeFigures]:
    """Each pair's readings as one, with the bandwidth that a process of its own measures now that all others are gone.

    Raises:
        RuntimeError, OSError: as run_isolated does.
    """
    wanted = [(round(step_bytes(readings)), readings[0].speed.conditions["device"]) for readings in found.values()]
    bandwidths = run_isolated(read_bandwidths, wanted).value if wanted else []
    return {pair: pooled(readings, bandwidth) for (pair, readings), bandwidth in zip(found.items(), bandwidths, strict=True)}


def in_one_line(error: Exception) -> str:
    """What happened, for a table: the first line, and the last of a log that follows, which is what the program said when it ended."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return first if not rest or rest[-1] in first else f"{first} … {rest[-1]}"


class Crew:
    """The processes that measure: one for each pair of artifact and runtime, kept for its next turn while memory has room."""

    def __init__(self, folders: Mapping[str, Path], protocol: Protocol) -> None:
        self.folders, self.protocol = folders, protocol
        self.kept: dict[Pair, tuple[Isolated[Reading], Reading]] = {}  # with what it read last
        self.room = math.inf  # bytes free on the GPU, by who used it last: to ask for itself would take some of it

    def measure(self, pair: Pair, last: bool) -> Reading:
        """The next figures of an artifact in a runtime, whose process ends if these are its `last`.

        Raises:
            UserError, RuntimeError, OSError: as Isolated does; the process is gone then.
        """
        try:
            return self._turn(pair, last)
        except Overdue:
            raise
        except RuntimeError:  # of want of memory perhaps, which the others hold
            if not self.kept:
                raise
            while self.kept:
                self._dismiss()
            return self._turn(pair, last)

    def _turn(self, pair: Pair, last: bool) -> Reading:
        process, _ = self.kept.pop(pair, (None, None))
        if process and not process.alive:  # killed while it was idle, for its memory perhaps: no fault of this pair
            process.close()
            process = None
        process = process or self._start(pair)
        try:
            reading = process.next(self.protocol.limit * self._rounds_in_one(pair[1]))
        except BaseException:
            process.close()
            raise
        self.room = reading.free
        if last:
            process.close()
        else:
            self.kept[pair] = process, reading
        return reading

    def _dismiss(self) -> None:
        """Let the one go that came last: its next turn is farthest away."""
        process, reading = self.kept.popitem()[1]
        process.close()
        self.room += reading.memory.loaded

    def _start(self, pair: Pair) -> Isolated[Reading]:
        name, runtime = pair
        needed = NEEDED * disk_bytes(self.folders[name]) + BESIDE
        while self.kept and min(free_bytes(), self.room) < needed:
            self._dismiss()
        protocol = self.protocol
        repetitions = protocol.repetitions * self._rounds_in_one(runtime)
        sizes = (protocol.prompt_tokens, protocol.generated_tokens, repetitions, protocol.dtype)
        with starting_on(protocol.device):
            return Isolated(measuring, self.folders[name], runtime, *sizes, name=RUNNERS[runtime].label)

    def _rounds_in_one(self, runtime: str) -> int:
        return self.protocol.rounds if RUNNERS[runtime].starts_slowly else 1

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as closing:  # all of them, also where one fails or Ctrl-C comes
            for kept in self.kept.values():
                closing.callback(kept[0].close)
