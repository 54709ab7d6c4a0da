"""Formats timed in runtimes, and put under load as servers: jobs that have a machine to themselves, and their figures as tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from qlab.models.texts.prompts import load_prompts
from qlab.plan.plan import cache_bytes
from qlab.plan.shapes import config_shape
from qlab.recipes import parse
from qlab.support.errors import UserError
from qlab.support.versions import version_of
from qlab.sweep.jobs import PROCESS, WEIGHTS_A_SECOND, Format, Job, key_of
from qlab.sweep.plan import ORIGINAL, Bench, Load, Sweep
from qlab.sweep.results import DONE, Result, Store, standing

BENCH, SERVE = "bench", "serve"  # kinds of jobs
LIBRARIES = ("vllm", "gptqmodel")  # on whose versions a speed depends too
BYTES_A_WEIGHT = 12  # of a process that times a model, or of one that holds it in FP32 beside the server that it proves
STARTING = 60.0  # seconds until a runtime has loaded a model and compiled what it compiles


def speed_jobs(sweep: Sweep, formats: Sequence[Format]) -> list[Job]:
    """The jobs that time these formats of a model and put them under load, as far as the sweep's file asks for it.

    Raises:
        UserError: a runtime that there is not, or a recipe that is named and that none of the runtimes runs; a file of prompts that cannot
            be read.
    """
    found = []
    if sweep.bench:
        from qlab.evaluate.engines import RUNNERS  # here, as below: what runtimes need takes long to import

        kinds = {name: runner.kinds for name, runner in RUNNERS.items()}
        found += [bench_of(sweep, sweep.bench, each) for each in timed(formats, sweep.bench.recipes, sweep.bench.runtimes, kinds)]
    if sweep.load:
        from qlab.serve.runtimes.registry import RUNTIMES

        kinds = {name: runtime.kinds for name, runtime in RUNTIMES.items()}
        runtimes = [sweep.load.runtime] if sweep.load.runtime else []
        prompts = load_prompts(prompts_file(sweep.load))
        asked = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
        found += [serve_of(sweep, sweep.load, each, len(prompts), asked) for each in timed(formats, sweep.load.recipes, runtimes, kinds)]
    return found


def timed(formats: Sequence[Format], recipes: Sequence[str], runtimes: Sequence[str], kinds: Mapping[str, Sequence[str]]) -> list[Format]:
    """The formats of the named `recipes`; where none is named, all that one of the `runtimes` runs, or any of `kinds`, where none of these
    is named.

    Raises:
        UserError: a runtime that is not among `kinds`, or a format of a named recipe that none of the runtimes runs.
    """
    if unknown := [name for name in runtimes if name not in kinds]:
        raise UserError(f"no runtime {unknown[0][:40]!r}: expected {', '.join(kinds)}")
    source = formats[0].source
    named = {ORIGINAL if name == ORIGINAL else parse(name).fitted(source).recipe.name for name in recipes}
    able = [kind for name in runtimes or kinds for kind in kinds[name]]
    if refused := [each for each in formats if each.recipe in named and each.kind not in able]:
        raise UserError(
            f"{refused[0].recipe} of {source.name} is {refused[0].kind}, which {', '.join(runtimes or kinds)} cannot run: leave it out of "
            "the recipes to time, or name another runtime"
        )
    return [each for each in formats if each.kind in able and (each.recipe in named or not recipes)]


def bench_of(sweep: Sweep, bench: Bench, measured: Format) -> Job:
    """The job that times a format, its prompt and its generation, in runtimes."""
    words = ["bench", measured.word, *(word for name in bench.runtimes for word in ("--runtime", name)), "--json", "--results", ""]
    words += ["--device", sweep.device]
    sizes = {"--prompt-tokens": bench.prompt_tokens, "--generated-tokens": bench.generated_tokens, "--repetitions": bench.repetitions}
    words += [word for option, value in sizes.items() for word in (option, str(value))]
    weights, tokens = measured.source.layout.weights, (bench.repetitions + 1) * (bench.prompt_tokens + bench.generated_tokens)
    memory, seconds = 2 * PROCESS + BYTES_A_WEIGHT * weights, STARTING + tokens * weights / WEIGHTS_A_SECOND
    return job_of(BENCH, sweep, measured, words, [], memory, seconds)


def serve_of(sweep: Sweep, load: Load, measured: Format, prompts: int, asked: str) -> Job:
    """The job that serves a format, proves the server, and puts it under load with so many `prompts`, whose hash is `asked`."""
    context, sequences = sweep.constraints.context, max(load.concurrency)
    words = ["serve", measured.word, "--name", "model", "--port", "0", "--json", "--load", ",".join(map(str, load.concurrency))]
    words += ["--tokens", str(load.tokens), "--context", str(context), "--sequences", str(sequences)]
    words += ["--threads", str(sweep.limits.threads), "--gpus", "0" if sweep.device == "cpu" else "1"]
    words += ["--runtime", load.runtime] if load.runtime else []
    words += ["--prompts", str(file)] if (file := prompts_file(load)) else []
    source, weights = measured.source, measured.source.layout.weights
    memory = 2 * PROCESS + BYTES_A_WEIGHT * weights + cache_bytes(config_shape(source.config, source.name), context, sequences)
    seconds = STARTING + prompts * load.tokens * len(load.concurrency) * weights / WEIGHTS_A_SECOND
    return job_of(SERVE, sweep, measured, words, [asked], memory, seconds)


def job_of(kind: str, sweep: Sweep, measured: Format, words: list[str], inputs: list[str], memory: float, seconds: float) -> Job:
    """A job that times, with the key of all that its figures depend on but for the machine, which they name."""
    depends = [*measured.inputs, *inputs, str(sweep.limits.threads), *map(version_of, LIBRARIES)]
    key = key_of(words, depends)
    return Job(kind, measured.model, measured.recipe, tuple(words), key, measured.needs, memory, seconds, measured.place, True)


def prompts_file(load: Load) -> Path | None:
    """The file of prompts, as any folder finds it; None for the workbook's."""
    return Path(load.prompts).expanduser().absolute() if load.prompts else None


def speeds_table(jobs: Sequence[Job], store: Store) -> pd.DataFrame:
    """A row for each format and runtime: tokens a second with their standard deviations, the ceiling that memory bandwidth sets, bytes in
    memory, and on which machine; or why there are none."""
    return pd.DataFrame([row for job in jobs if job.kind == BENCH for row in speeds_of(job, store.read(job.key))])


def speeds_of(job: Job, found: Result | None) -> list[dict[str, Any]]:
    """The rows of a job that timed."""
    row = row_of(job, found)
    rows = []
    for one in found.figures.get("measured", []) if found and found.state == DONE else []:
        by_name = {figure["metric"]: figure for figure in one["figures"]}
        first = one["figures"][0]
        told = {
            "runtime": one["runtime"],
            "why": first["reason"],
            **{name: first["conditions"].get(name) for name in ("device", "threads")},
        }
        for name in ("prompt", "generation"):
            told |= {name: by_name.get(name, {}).get("value"), f"{name}_sd": by_name.get(name, {}).get("error")}
        told |= {"ceiling": by_name.get("generation ceiling", {}).get("value")}
        told |= {"memory": by_name.get("memory generating", {}).get("value")}
        rows.append(row | told)
    return rows or [row]


def loads_table(jobs: Sequence[Job], store: Store) -> pd.DataFrame:
    """A row for each format and number of requests at a time: seconds to the first token and for each token, requests and tokens a second,
    bytes of the server; or why there are none."""
    return pd.DataFrame([row for job in jobs if job.kind == SERVE for row in loads_of(job, store.read(job.key))])


def loads_of(job: Job, found: Result | None) -> list[dict[str, Any]]:
    """The rows of a job that served."""
    row = row_of(job, found)
    if not found or found.state != DONE:
        return [row]
    row |= {"runtime": found.figures["runtime"], "memory": found.figures["memory_bytes"]}
    rows = []
    for level in found.figures["load"]["levels"]:
        times = {f"{name}_{part}": level[name].get(part) for name in ("ttft", "tpot") for part in ("p50", "p99")}
        rates = {name: level[name] for name in ("request_throughput", "output_throughput", "changed")}
        rows.append(row | {"at_a_time": level["concurrency"]} | times | rates)
    return rows


def row_of(job: Job, found: Result | None) -> dict[str, Any]:
    """What every row of a timed format says."""
    return {"model": job.model, "format": job.recipe} | standing(found) | {"machine": found.where if found else ""}
