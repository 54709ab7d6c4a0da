"""`qlab sweep`: many models and recipes by one file, and one table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qlab.cli.app import app, console
from qlab.cli.words import show, table

if TYPE_CHECKING:
    from rich.table import Table

    from qlab.sweep.drive import Progress
    from qlab.sweep.jobs import Job

WIDE = 160  # characters, where nobody watches


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="YAML with models, recipes, texts, constraints and gates; docs/using.md has one.")],
    out: Annotated[Path, typer.Option(help="Folder of artifacts, results, table and page.")] = Path("build/sweep"),
    dry_run: Annotated[bool, typer.Option(help="Only print the jobs, with the memory and time that they will take.")] = False,
) -> None:
    """Quantize and evaluate every model by every recipe of a file. Interrupted, the same command goes on; nothing is done twice."""
    from rich.live import Live

    from qlab.artifacts.budget import parse_bytes, size_text
    from qlab.show.site.sweep_page import LivePage, write_page
    from qlab.support.disk.lock import locked
    from qlab.sweep.cards import renew_cards
    from qlab.sweep.drive import Patience, drive
    from qlab.sweep.jobs import expand, opened
    from qlab.sweep.local import Local, free_memory, jobs_at_once
    from qlab.sweep.plan import read_sweep
    from qlab.sweep.recommend import caches, fitting, recommendation
    from qlab.sweep.results import Store
    from qlab.sweep.results import table as rows_of
    from qlab.workbook.lesson import quiet

    quiet()
    asked = read_sweep(file)
    limits = asked.limits
    memory = parse_bytes(limits.memory) if limits.memory else free_memory()
    models = opened(asked)
    jobs, cache = expand(asked, models, out.absolute()), caches(asked, models)
    store = Store(out / "jobs")
    workers = Local(out / "logs", memory, jobs_at_once(asked.device, limits.threads), limits.threads)
    show_plan(jobs, {job.key for job in jobs if not store.done(job)}, workers.at_once, size_text(memory))
    if dry_run:
        return
    for folder in (out, store.folder, out / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    page = LivePage(lambda progress: write_page(out, fitting(rows_of(jobs, store), asked, cache), [], sentence(progress), True))
    with locked(out / ".lock", str(out)), Live(console=console, transient=True, refresh_per_second=2) as live:

        def watch(progress: Progress) -> None:
            live.update(standing(progress))
            page.update(progress)

        try:
            end = drive(jobs, store, workers, Patience(limits.tries, 3600 * limits.hours), watch)
        finally:
            workers.close()
    found = fitting(rows_of(jobs, store), asked, cache)
    advice = recommendation(found, asked)
    found.to_csv(out / "table.csv", index=False)
    found.to_parquet(out / "table.parquet", index=False)
    index = write_page(out, found, advice, sentence(end), False)
    renew_cards(jobs, store, models)
    print("\n".join(advice))
    for job in end.failed:
        result = store.read(job.key)
        console.print(f"[red]failed[/red]: {job.name}: ", end="")
        console.print(result.error if result else "", markup=False, highlight=False)
    console.print(f"{index} and {out / 'table.csv'}", markup=False, highlight=False)
    if end.failed:
        raise typer.Exit(1)


def show_plan(jobs: Sequence[Job], missing: set[str], at_once: int, memory: str) -> None:
    """The jobs with what they will take, and in a sentence what the `missing` ones take together."""
    from qlab.artifacts.budget import size_text
    from qlab.artifacts.duration import time_text

    rows = [(job.name, "to do" if job.key in missing else "done", size_text(job.memory), time_text(job.seconds)) for job in jobs]
    show(table(("job", "", "memory", "time of one thread"), rows), WIDE)
    total = time_text(sum(job.seconds for job in jobs if job.key in missing) / at_once)
    print(f"{len(jobs)} jobs, {len(missing)} to do, about {total} with {at_once} at a time in {memory} of memory")


def sentence(progress: Progress) -> str:
    """Where a sweep stands, in one sentence."""
    from qlab.artifacts.duration import time_text

    parts = [f"{len(progress.done)} done", f"{len(progress.running)} running", f"{len(progress.waiting)} waiting"]
    parts += [f"{len(progress.failed)} failed"] if progress.failed else []
    left = f"; about {time_text(progress.left)} left" if progress.left and (progress.running or progress.waiting) else ""
    return f"{', '.join(parts)}{left}."


def standing(progress: Progress) -> Table:
    """The jobs at work as a table, and the rest in a sentence above."""
    return table(("running", ""), [(job.name, progress.where[job.key]) for job in progress.running], title=sentence(progress))
