"""Several artifacts in several runtimes, in turns, each time in a process of its own; a crash or a time-out is a row that says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qlab.errors import UserError
from qlab.evaluate.engines import RUNNERS, runners_of
from qlab.evaluate.runtime import RuntimeFigures, measure_runtime, pooled
from qlab.process import run_isolated
from qlab.progress import progress

ABSENT = "is not on this machine"
LIMIT = 900.0  # seconds for one artifact in one runtime, loading included


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
    runtime that takes half a minute to start has its timings in the first round, all of them.

    Raises:
        UserError: a runtime that there is not, a folder that none runs, or a single timing, which has no spread.
    """
    if protocol.rounds * protocol.repetitions < 2:
        raise UserError("one timing has no spread: give two rounds or repetitions, or more")
    pairs = [(name, runtime) for name, folder in folders.items() for runtime in runners_of(folder, runtimes)]
    found: dict[tuple[str, str], list[RuntimeFigures]] = {pair: [] for pair in pairs}
    problems: dict[tuple[str, str], str] = {
        (name, runtime): f"{RUNNERS[runtime].label} {ABSENT}: {RUNNERS[runtime].install}"
        for name, runtime in pairs
        if not RUNNERS[runtime].present()
    }
    able = [pair for pair in pairs if pair not in problems]
    later = [pair for pair in able if not RUNNERS[pair[1]].starts_slowly]
    for pair in progress(able + later * (protocol.rounds - 1), "speeds", leave=False):
        if pair in problems:
            continue
        try:
            found[pair].append(one_run(folders[pair[0]], pair[1], protocol))
        except (UserError, RuntimeError, OSError) as error:
            problems[pair] = in_one_line(error)
    return [
        Measured(name, RUNNERS[runtime].label, None, problems[name, runtime])
        if (name, runtime) in problems
        else Measured(name, RUNNERS[runtime].label, pooled(found[name, runtime]))
        for name, runtime in pairs
    ]


def in_one_line(error: Exception) -> str:
    """What happened, for a table: the first line, and the last of a log that follows, which is what the program said when it ended."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return first if not rest or rest[-1] in first else f"{first} … {rest[-1]}"


def one_run(folder: Path, runtime: str, protocol: Protocol) -> RuntimeFigures:
    """One artifact in one runtime, in a fresh process."""
    rounds = protocol.rounds if RUNNERS[runtime].starts_slowly else 1
    sizes = (protocol.prompt_tokens, protocol.generated_tokens, protocol.repetitions * rounds, protocol.dtype)
    return run_isolated(measure_runtime, folder, runtime, *sizes, limit=protocol.limit * rounds).value
