"""`qlab bench` and `qlab results`: speed and memory in the runtimes, and the table of everything measured."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qlab.cli.app import DeviceOption, app, console, refuse
from qlab.cli.numbers import AT_A_TIME, TOKENS, numbers_in, real, whole
from qlab.cli.words import failures, readable, show, table
from qlab.support.disk.whole import write_whole
from qlab.support.errors import UserError

if TYPE_CHECKING:
    from qlab.serve.crowd import Served

UNDER_LOAD = ("--cache", "--context", "--requests", "--gpus")  # options that say how artifacts are served
TIMED = ("--prompt-tokens", "--repetitions", "--rounds", "--dtype", "--time-limit", "--device")  # and how they are timed
WIDE = 180  # characters, where nobody watches
SHOWN = ("perplexity", "kl", "prompt", "generation", "generation ceiling", "memory loaded", "memory generating")
StoreOption = Annotated[str, typer.Option(help="SQLite file that figures are added to; '' keeps them nowhere.")]


@app.command()
def bench(
    command: typer.Context,
    artifacts: Annotated[list[str], typer.Argument(help="Models or artifacts: 'embedded', folders, hub ids.")],
    runtime: Annotated[list[str] | None, typer.Option(help="transformers, llamacpp, vllm, …; may be repeated; else all that can.")] = None,
    prompt_tokens: Annotated[int, whole("Tokens of the prompt (pp).", 1, TOKENS)] = 512,
    generated_tokens: Annotated[int, whole("Tokens generated (tg).", 1, TOKENS)] = 128,
    repetitions: Annotated[
        int, whole("Timed repetitions after one warm-up, in every round; more of what takes milliseconds.", 1, 1000)
    ] = 5,
    rounds: Annotated[int, whole("Rounds over all artifacts, so that a drift of the machine shows.", 1, 1000)] = 1,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16 for transformers; auto: FP32 on a CPU, FP16 on a GPU.")] = "auto",
    time_limit: Annotated[float, real("Seconds for one artifact in one runtime.", 1, 604_800)] = 900.0,
    device: DeviceOption = "auto",
    load: Annotated[
        str, typer.Option(help="Instead: serve each artifact in turn, with so many requests at a time, such as 1,4,16,64.")
    ] = "",
    cache: Annotated[str, typer.Option(help="With --load: what the KV cache is kept in, several in turn: f16,q8_0,q4_0.")] = "f16",
    context: Annotated[int, whole("With --load: tokens of a prompt and its answer.", 16, TOKENS)] = 512,
    requests: Annotated[int, whole("With --load: prompts sent at each level, of the 500 of this workbook.", 1, 500)] = 128,
    gpus: Annotated[int, whole("With --load: GPUs to serve on.", 0, 1024)] = 0,
    results: StoreOption = "build/results.sqlite",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line.")] = False,
) -> None:
    """Prompt and generation speed, the ceiling that memory bandwidth sets, and memory predicted and measured; each in its own process."""
    import torch

    from qlab.evaluate.engines import DTYPES
    from qlab.evaluate.rounds import Protocol, check_device, measure_in_turns
    from qlab.evaluate.store.load import load_figures
    from qlab.evaluate.store.results import runtime_figures
    from qlab.models.opening import locate
    from qlab.models.texts.prompts import load_prompts
    from qlab.serve.crowd import Service, serve_in_turn
    from qlab.workbook.lesson import quiet

    if load:
        refuse(command, TIMED, "says how artifacts are timed, and with --load they are served: leave out one of the two")
    else:
        refuse(command, UNDER_LOAD, "needs --load, such as --load 1,4,16: it says how artifacts are served, or leave it out")
    check_device(device)
    if dtype not in ("auto", *DTYPES):
        raise UserError(f"--dtype {dtype!r}: expected auto, {', '.join(DTYPES)}")
    quiet()
    sources = by_short_name([locate(name) for name in artifacts])
    folders = {name: source.path for name, source in sources.items()}
    subjects = {name: subject_of(source) for name, source in sources.items()}
    if load:
        levels = numbers_in(load, "--load", AT_A_TIME)
        service = Service(context, max(levels), [word.strip() for word in cache.split(",")], only(runtime), gpus, torch.get_num_threads())
        texts = [entry["prompt"] for entry in load_prompts()]
        served = serve_in_turn(folders, service, texts[:: max(1, len(texts) // requests)][:requests], levels, generated_tokens)
        keep(results, artifacts[0], [(replace(subjects[one.name], runtime=one.runtime), load_figures(one, service)) for one in served])
        show_served(served, levels, as_json)
        return
    protocol = Protocol(prompt_tokens, generated_tokens, repetitions, rounds, dtype, time_limit, device)
    measured = measure_in_turns(folders, runtime or [], protocol)
    found = [(replace(subjects[one.name], runtime=one.runtime), runtime_figures(one.figures, one.problem)) for one in measured]
    keep(results, artifacts[0], found)
    if as_json:
        rows = [{"artifact": subject.artifact, "runtime": subject.runtime, "figures": [vars(f) for f in each]} for subject, each in found]
        print(json.dumps({"measured": rows}))
        for one in measured:
            if one.problem:
                console.print(readable(f"error: {one.name} in {one.runtime}: {one.problem}"), markup=False, highlight=False)
    else:
        print_speeds(measured, protocol)
    if all(one.figures is None for one in measured):
        raise typer.Exit(1)


def only(runtimes: list[str] | None) -> str | None:
    """The one runtime that is named; None where none is.

    Raises:
        UserError: several are.
    """
    if runtimes and len(runtimes) > 1:
        raise UserError(f"--load serves every artifact in one runtime: give one --runtime, not {len(runtimes)}")
    return runtimes[0] if runtimes else None


def show_served(served: Sequence[Served], levels: Sequence[int], as_json: bool) -> None:
    """What each artifact gave at each level of load, and who leads where; ends with 1 where anything was lost or wrong."""
    from qlab.serve.crowd import crossings

    if as_json:
        print(json.dumps({"served": [asdict(one) for one in served], "crossings": crossings(served)}))
    else:
        rates = [f"tok/s at {level}" for level in levels]
        columns = ["artifact", "runtime", "MB predicted", "held", *rates, f"TTFT p99 at {levels[-1]} (ms)"]
        show(table(columns, [served_row(one, levels) for one in served]), WIDE)
        print("\n".join([*crossings(served), *lost(served)]))
    if lost(served):
        raise typer.Exit(1)


def lost(served: Sequence[Served]) -> list[str]:
    """What did not come, or came wrong, in sentences."""
    said = [readable(f"{one.label}: {one.problem}") for one in served if one.problem]
    return said + [f"{one.label}, {failure}" for one in served for failure in failures(one.levels)]


def served_row(one: Served, levels: Sequence[int]) -> list[str]:
    """A server's row in the table."""
    if one.problem:
        return [one.label, one.runtime, "no, see below"]
    predicted = f"{one.expected / 1e6:.0f}" if one.expected else "not known"
    rates, waited = [f"{one.throughput(level):.0f}" for level in levels], one.levels[-1].ttft
    return [one.label, one.runtime, predicted, f"{one.held / 1e6:.0f}", *rates, f"{1000 * waited['p99']:.0f}" if waited else "none"]


def by_short_name(sources: list[Any]) -> dict[str, Any]:
    """Models and artifacts by the last part of their path, and by as many more as tell them apart."""
    paths = [(*source.path.resolve().parts[:-1], source.name) for source in sources]

    def short(path: tuple[str, ...]) -> str:
        lengths = (n for n in range(1, len(path)) if sum(other[-n:] == path[-n:] for other in paths) == 1)
        return "/".join(path[-next(lengths, len(path)) :])

    return {short(path): source for path, source in zip(paths, sources)}


def subject_of(source: Any) -> Any:
    """What the figures of a model or artifact are filed under; for use before the work.

    Raises:
        UserError: an artifact's manifest is damaged.
    """
    from qlab.artifacts.artifact import Artifact, model_folder
    from qlab.evaluate.store.results import Subject

    if Artifact.open(source.path):
        return Subject(source.path.parent.name, source.path.name, source.fingerprint)
    return Subject(model_folder(source), "original", source.fingerprint)


def keep(store: str, model: str, found: list[Any]) -> None:
    """Add figures to the table, if one is wanted; a table that cannot be written is said, and costs nobody the figures."""
    from qlab.evaluate.store.provenance import provenance
    from qlab.evaluate.store.results import add

    if store:
        try:
            add(Path(store), provenance(model), found)
        except UserError as error:
            console.print(f"the figures were not kept: {error}", markup=False, highlight=False)


def print_speeds(measured: list[Any], protocol: Any) -> None:
    """The table of `qlab bench`, and below it why a row has no figures."""
    columns = (
        "artifact", "runtime", f"pp{protocol.prompt_tokens} tok/s", f"tg{protocol.generated_tokens} tok/s", "by its own clock",
        "ceiling tok/s", "MB predicted", "loaded", "prompting", "generating", "dtype, kernel",
    )  # fmt: skip
    rows: list[list[str]] = []
    for one in measured:
        if one.figures is None:
            rows.append([one.name, one.runtime, *["no, see below"] * 2])
            continue
        speed, memory = one.figures.speed, one.figures.memory
        rates = [f"{speed.prompt:.0f} ± {speed.prompt_sd:.0f}", f"{speed.generation:.1f} ± {speed.generation_sd:.1f}"]
        own = [f"{rate:.0f}" if rate else "none" for rate in (speed.prompt_reported, speed.generation_reported)]
        sizes = (memory.predicted, memory.loaded, memory.prompting, memory.generating)
        threads = speed.conditions["threads"]
        under = f"{speed.conditions['dtype']}, {speed.conditions['kernel']}, {threads} thread{'' if threads == '1' else 's'}"
        ceiling = f"{one.figures.ceiling:.0f}"
        rows.append([one.name, one.runtime, *rates, " / ".join(own), ceiling, *(f"{size / 1e6:.0f}" for size in sizes), under])
    show(table(columns, rows), WIDE)
    for one in measured:
        if one.problem:
            print(readable(f"{one.name} in {one.runtime}: {one.problem}"))


@app.command()
def results(
    metric: Annotated[list[str] | None, typer.Option(help="A metric to show, such as kl or 'memory loaded'; may be repeated.")] = None,
    model: Annotated[str, typer.Option(help="Only models whose name holds this.")] = "",
    every: Annotated[bool, typer.Option("--every", help="Also figures that were measured again later.")] = False,
    store: Annotated[Path, typer.Option(help="The SQLite file.")] = Path("build/results.sqlite"),
    csv: Annotated[Path | None, typer.Option(help="Write the tidy table, one row a figure with its provenance, to this new file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file of --csv where there is one.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The tidy table as one JSON list.")] = False,
) -> None:
    """Everything measured so far, over models, runtimes and machines: `qlab bench`, `qlab evaluate` and lesson 7 add to it."""
    from qlab.evaluate.store.results import read
    from qlab.evaluate.store.wide import wide

    if csv:
        check_csv(csv, store, force)
    figures = read(store, every)
    figures = figures[figures["model"].str.contains(model, regex=False, case=False)]
    if unknown := [name for name in metric or [] if name not in set(figures["metric"])]:
        raise UserError(f"no figures of {unknown[0]!r} here: expected {', '.join(sorted(figures['metric'].unique()))}")
    if csv:
        write_whole(csv.resolve(), figures.to_csv(index=False))
        console.print(f"{len(figures)} figures in {csv}", markup=False, highlight=False)
    if as_json:
        print(figures.to_json(orient="records"))
    elif not csv:
        shown, under = wide(figures, metric or [name for name in SHOWN if name in set(figures["metric"])])
        show(table(map(str, shown.columns), shown.itertuples(index=False)), WIDE)
        print("\n".join(map(readable, under)))


def check_csv(file: Path, store: Path, force: bool) -> None:
    """See that a table can be written to `file`, and that no file is replaced but by `force`.

    Raises:
        UserError: its folder is missing, it is no regular file, it is the store itself, or it is there already.
    """
    if not file.parent.is_dir():
        raise UserError(f"no folder {file.parent} for --csv {file.name}: make it first ('mkdir -p {file.parent}')")
    if file.exists() and store.exists() and file.samefile(store):
        raise UserError(f"--csv {file} is the store of the figures itself: give another file")
    if os.path.lexists(file) and not file.is_file():
        raise UserError(f"--csv {file} is not a regular file: give another, or take --json for standard output")
    if os.path.lexists(file) and not force:
        raise UserError(f"--csv {file} is there already: give another file, or --force to replace it")
