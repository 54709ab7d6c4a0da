"""Several artifacts under the same load, each served in turn: what every format gives one user, and what it gives many.

Few bits a weight are read faster, which is what one user waits for. With many at a time a step's arithmetic counts, and unpacking codes
costs; then formats change places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from qlab.models.locating import kind_of
from qlab.plan.plan import check_cache
from qlab.serve.load import Level, run_load
from qlab.serve.runtimes.registry import runtime_for, runtime_named
from qlab.serve.runtimes.runtime import expected_memory
from qlab.serve.server import on_free_port, serving
from qlab.support.errors import UserError
from qlab.support.progress import progress
from qlab.support.wording import Sentence, listed

NEAR = 0.05  # of the throughput: nearer than this, two formats are not told apart


@dataclass(frozen=True)
class Served:
    """The artifact `name` as it was served: by which runtime, what its KV cache was kept in, what was measured at each level of load; bytes
    that its processes held in the end and that were predicted (None where nobody knows); or the `problem` that there are none."""

    name: str
    runtime: str
    cache: str
    levels: Sequence[Level] = ()
    held: int = 0
    expected: float | None = None
    problem: str = ""

    @property
    def label(self) -> str:
        """Its name in a table."""
        return self.name if self.cache == "f16" else Sentence("{name}, cache {cache}", name=self.name, cache=self.cache)

    def throughput(self, concurrency: int) -> float:
        """Output tokens a second at that level; 0 where there is none."""
        return next((level.output_throughput for level in self.levels if level.concurrency == concurrency), 0.0)


@dataclass(frozen=True)
class Service:
    """How each artifact is served: `context` tokens for each of `sequences` requests at a time, the KV cache kept in each of `caches` in
    turn, on so many `gpus` and CPU `threads`, by the `runtime` named or the first here that serves the format.

    Raises:
        UserError: no such cache.
    """

    context: int
    sequences: int
    caches: Sequence[str] = ("f16",)
    runtime: str | None = None
    gpus: int = 0
    threads: int = 2

    def __post_init__(self) -> None:
        for cache in self.caches:
            check_cache(cache)


def serve_in_turn(
    folders: Mapping[str, Path], service: Service, prompts: Sequence[str], levels: Sequence[int], tokens: int, fewest: int | None = None
) -> list[Served]:  # fmt: skip
    """Serve each of `folders`, with each cache, and send `prompts` at each concurrency of `levels`, all or the `fewest` as in run_load, for
    answers of so many `tokens`.

    Raises:
        UserError: no runtime of that name, or as run_load. A server that does not start is a row that says so.
    """
    found = []
    for name, cache in progress([(name, cache) for name in folders for cache in service.caches], "served", leave=False):
        chosen = runtime_named(service.runtime) if service.runtime else runtime_for(kind_of(folders[name]))
        options = {"gpus": service.gpus, "threads": service.threads, "cache": cache}
        deployment = on_free_port(folders[name], service.context, service.sequences, **options)
        try:
            with serving(chosen, deployment) as server:
                measured = run_load(server.url, deployment.name, prompts, levels, tokens, fewest=fewest)
                memory = expected_memory(chosen, deployment)
                found.append(Served(name, chosen.label, cache, measured, server.held_bytes(), memory.total if memory else None))
        except UserError as error:
            found.append(Served(name, chosen.label, cache, problem=str(error)))
    return found


def leading(served: Sequence[Served]) -> dict[int, list[str]]:
    """At each concurrency the names of those that give most tokens a second, the first of all first; others that NEAR does not tell apart
    from it behind."""
    levels = sorted({level.concurrency for one in served for level in one.levels})
    found = {}
    for level in levels:
        best = sorted((one for one in served if one.throughput(level)), key=lambda one: -one.throughput(level))
        if best:  # one at least gave an answer
            found[level] = [one.label for one in best if one.throughput(level) >= (1 - NEAR) * best[0].throughput(level)]
    return found


def crossings(served: Sequence[Served]) -> list[Sentence]:
    """Who leads at how many requests at a time, in sentences; a new one wherever that changes."""
    said = []
    for names, levels in groupby(leading(served).items(), key=lambda item: sorted(item[1])):
        counts = [level for level, _ in levels]
        where: Any = counts[0] if len(counts) == 1 else Sentence("{first} to {last}", first=counts[0], last=counts[-1])
        if len(names) == 1:
            said.append(Sentence("{where} at a time: {name} gives most tokens/s", where=where, name=names[0]))
        else:
            text = "{where} at a time: {names} are not told apart (within {near:.0%})"
            said.append(Sentence(text, where=where, names=listed(names), near=NEAR))
    return said
