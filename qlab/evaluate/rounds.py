"""Several artifacts in several runtimes, in turns, each in a process of its own; a crash or a time-out is a row that says so.

Loading a library and a model takes longer than timing it. So a process stays, idle, from one round to the next, while memory has room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from qlab.errors import UserError
from qlab.evaluate.engines import RUNNERS, runners_of
from qlab.evaluate.memory import disk_bytes, free_bytes
from qlab.evaluate.runtime import Reading, RuntimeFigures, measuring, pooled
from qlab.process import Isolated
from qlab.progress import progress

ABSENT = "is not on this machine"
LIMIT = 900.0  # seconds for one artifact in one runtime, loading included
NEEDED, BESIDE = (
    4,
    2e9,
)  # bytes that must be free for a new process: so many for each on disk (FP16 as FP32, twice while it loads), and these
Pair = tuple[str, str]
"""An artifact's name, a runtime's."""


@dataclass(frozen=True)
class Protocol:
    """How speeds are taken: tokens of the prompt (pp) and generated (tg), timed `repetitions` in each of `rounds`, `limit` seconds each."""

    prompt_tokens: int = 512
    generated_tokens: int = 128
    repetitions: int = 5
    rounds: int = 1
    dtype: str = "auto"
    limit: float = LIMIT


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
    for pair in [pair for pair in able if pair not in problems]:
        try:
            figures[pair] = pooled(found[pair])
        except RuntimeError as error:  # no memory to read for the ceiling
            problems[pair] = in_one_line(error)
    return [Measured(pair[0], RUNNERS[pair[1]].label, figures.get(pair), problems.get(pair, "")) for pair in pairs]


def in_one_line(error: Exception) -> str:
    """What happened, for a table: the first line, and the last of a log that follows, which is what the program said when it ended."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return first if not rest or rest[-1] in first else f"{first} … {rest[-1]}"


class Crew:
    """The processes that measure: one for each pair of artifact and runtime, kept for its next turn while memory has room, and until
    another runtime wants the same files."""

    def __init__(self, folders: Mapping[str, Path], protocol: Protocol) -> None:
        self.folders, self.protocol = folders, protocol
        self.kept: dict[Pair, Isolated[Reading]] = {}

    def measure(self, pair: Pair, last: bool) -> Reading:
        """The next figures of an artifact in a runtime, whose process ends if these are its `last`.

        Raises:
            UserError, RuntimeError, OSError: as Isolated does; the process is gone then.
        """
        process = self.kept.pop(pair, None)
        if process and not process.alive:  # killed while it was idle, for its memory perhaps: no fault of this pair
            process.close()
            process = None
        process = process or self._start(pair)
        try:
            figures = process.next(self.protocol.limit * self._rounds_in_one(pair[1]))
        except BaseException:
            process.close()
            raise
        if last:
            process.close()
        else:
            self.kept[pair] = process
        return figures

    def _start(self, pair: Pair) -> Isolated[Reading]:
        name, runtime = pair
        for other in [other for other in self.kept if self.folders[other[0]] == self.folders[name]]:
            self.kept.pop(other).close()  # of a file that two have mapped, memory counts a half for each
        while self.kept and free_bytes() < NEEDED * disk_bytes(self.folders[name]) + BESIDE:
            self.kept.popitem()[1].close()  # the one that came last: its next turn is farthest away
        protocol = self.protocol
        repetitions = protocol.repetitions * self._rounds_in_one(runtime)
        sizes = (protocol.prompt_tokens, protocol.generated_tokens, repetitions, protocol.dtype)
        return Isolated(measuring, self.folders[name], runtime, *sizes, name=RUNNERS[runtime].label)

    def _rounds_in_one(self, runtime: str) -> int:
        return self.protocol.rounds if RUNNERS[runtime].starts_slowly else 1

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as closing:  # all of them, also where one fails or Ctrl-C comes
            for process in self.kept.values():
                closing.callback(process.close)
