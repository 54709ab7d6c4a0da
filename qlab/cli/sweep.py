"""`qlab sweep`: many models and recipes by one file, and one table at the end."""

from __future__ import annotations

import os
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
    import psutil
    from rich.live import Live

    from qlab.artifacts.budget import parse_bytes, size_text
    from qlab.artifacts.duration import time_text
    from qlab.show.site.sweep_page import write_page
    from qlab.support.disk.lock import locked
    from qlab.sweep.drive import Room, drive
    from qlab.sweep.jobs import expand
    from qlab.sweep.plan import read_sweep
    from qlab.sweep.recommend import caches, fitting, recommendation
    from qlab.sweep.results import Store
    from qlab.sweep.results import table as rows_of
    from qlab.sweep.workers import Local
    from qlab.workbook.lesson import quiet

    quiet()
    asked = read_sweep(file)
    memory = parse_bytes(asked.limits.memory) if asked.limits.memory else 0.9 * psutil.virtual_memory().available
    jobs = expand(asked, out.absolute())
    cache = caches(asked)
    store = Store(out / "jobs")
    room = Room(memory, len(os.sched_getaffinity(0)), asked.limits.threads, asked.limits.tries, 3600 * asked.limits.hours, asked.device)
    missing = [job for job in jobs if not store.done(job)]
    rows = [(job.name, "done" if job not in missing else "to do", size_text(job.memory), time_text(job.seconds)) for job in jobs]
    show(table(("job", "", "memory", "time of one thread"), rows), WIDE)
    total = sum(job.seconds for job in missing) / room.at_once
    print(
        f"{len(jobs)} jobs, {len(missing)} to do, about {time_text(total)} with {room.at_once} at a time in {size_text(memory)} of memory"
    )
    if dry_run:
        return
    for folder in (out, store.folder, out / "logs"):
        folder.mkdir(parents=True, exist_ok=True)

    workers = Local(out / "logs")
    with locked(out / ".lock", str(out)), Live(console=console, transient=True, refresh_per_second=2) as live:

        def watch(progress: Progress) -> None:
            live.update(standing(progress))
            write_page(out, fitting(rows_of(jobs, store), asked, cache), [], sentence(progress), True)

        try:
            end = drive(jobs, store, workers, room, watch)
        finally:
            workers.close()
    found = fitting(rows_of(jobs, store), asked, cache)
    advice = recommendation(found, asked)
    found.to_csv(out / "table.csv", index=False)
    found.to_parquet(out / "table.parquet", index=False)
    page = write_page(out, found, advice, sentence(end), False)
    print("\n".join(advice))
    for job in end.failed:
        result = store.read(job.key)
        console.print(f"[red]failed[/red]: {job.name}: ", end="")
        console.print(result.error if result else "", markup=False, highlight=False)
    console.print(f"{page} and {out / 'table.csv'}", markup=False, highlight=False)
    if end.failed:
        raise typer.Exit(1)


def sentence(progress: Progress) -> str:
    """Where a sweep stands, in one sentence."""
    from qlab.artifacts.duration import time_text

    parts = [f"{len(progress.done)} done", f"{len(progress.running)} running", f"{len(progress.waiting)} waiting"]
    parts += [f"{len(progress.failed)} failed"] if progress.failed else []
    left = f"; about {time_text(progress.left)} left" if progress.left and (progress.running or progress.waiting) else ""
    return f"{', '.join(parts)}{left}."


def standing(progress: Progress) -> Table:
    """The jobs at work as a table, and the rest in a sentence below."""
    rows: list[Job] = progress.running
    return table(("running", ""), [(job.name, "") for job in rows], title=sentence(progress))
