"""`qlab sweep`: many models, recipes and lessons by one file, and one table at the end."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qlab.cli.app import app, console
from qlab.cli.words import aligned, table

if TYPE_CHECKING:
    from rich.table import Table

    from qlab.sweep.drive import Progress
    from qlab.sweep.jobs import Job
    from qlab.sweep.plan import Sweep
    from qlab.sweep.results import Store
    from qlab.sweep.workers.workers import Workers

LOCK = ".lock"  # in the folder of a sweep


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="YAML with models, recipes, lessons, texts, constraints and gates; docs/using.md has one.")],
    out: Annotated[Path, typer.Option(help="Folder of artifacts, results, table and page.")] = Path("build/sweep"),
    ray: Annotated[
        str | None,
        typer.Option(metavar="auto|HOST:PORT", help="Run the jobs on the machines of a Ray cluster; --out on a disk they share."),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Only print the jobs, with the memory and time that they will take.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Fail where a format is beyond the gates, or figures moved by more than their noise.")
    ] = False,
    accept: Annotated[bool, typer.Option("--accept", help="Keep the figures for --check, in a file beside this one.")] = False,
) -> None:
    """Quantize and evaluate every model by every recipe of a file; time the formats and run lessons where it says so. Interrupted, the same
    command goes on; nothing is done twice."""
    from rich.live import Live

    from qlab.models.opening import found_device
    from qlab.show.site.sweep_place import PAGE, check_out
    from qlab.support.disk.lock import locked
    from qlab.sweep.accepted import accept as keep
    from qlab.sweep.accepted import accepted_file, complaints, read_accepted
    from qlab.sweep.drive import Patience, drive, missing
    from qlab.sweep.expand import expand
    from qlab.sweep.jobs import ARTIFACTS, JOBS, LOGS, opened
    from qlab.sweep.lessons import lesson_jobs
    from qlab.sweep.plan import read_sweep
    from qlab.sweep.results import Store
    from qlab.workbook.lesson import quiet

    quiet()
    asked = read_sweep(file)
    accepted = read_accepted(accepted_file(file)) if check else None
    found_device(asked.device)
    limits, models = asked.limits, opened(asked)
    check_out(out, [subject.source.path for subject in models.values()], (file, accepted_file(file)))
    jobs = [*expand(asked, models, out.absolute()), *lesson_jobs(asked, models, out.absolute())]
    store = Store(out / JOBS)
    with closing(workers_for(asked, out, ray)) as workers:
        left = missing(jobs, store)
        show_plan(jobs, left, store, workers)
        if dry_run:
            return
        from qlab.show.site.sweep_page import LivePage  # here: what draws takes seconds to import
        from qlab.show.site.sweep_report import SweepReport

        for folder in (out, store.folder, out / LOGS):
            folder.mkdir(parents=True, exist_ok=True)
        report = SweepReport(out, asked, models, jobs, store)
        page = LivePage(lambda progress: report.live(sentence(progress)))
        with locked(out / LOCK, str(out)), Live(console=console, transient=True, refresh_per_second=2) as live:
            told = {job.key for job in jobs} - left

            def watch(progress: Progress) -> None:
                live.update(standing(progress))
                page.update(progress)
                tell_in_lines(progress, told)

            try:
                end = drive(jobs, store, workers, Patience(limits.tries, 3600 * limits.hours), watch)
            except KeyboardInterrupt:
                console.print("stopping the jobs at work, which takes some seconds")
                raise
            finally:
                workers.close()  # while the folder is still ours
            advices = report.final(sentence(end))
    print("\n".join(advices))
    tell_of_failures(end, store, workers)
    where = f"the page is {out / PAGE}, the tables for other programs lie beside it, the formats in {out / ARTIFACTS}"
    console.print(where, markup=False, highlight=False)
    wrong = complaints(report.formats(), accepted) if accepted else []
    for complaint in wrong:
        print(f"not as accepted: {complaint}")
    if end.failed or (wrong and not accept):
        raise typer.Exit(1)
    if accept:
        keep(accepted_file(file), report.formats())
        console.print(f"the figures are accepted, in {accepted_file(file)}", markup=False, highlight=False)


def tell_of_failures(end: Progress, store: Store, workers: Workers) -> None:
    """Say which jobs failed and why, and what there is to know of the machines."""
    for job in end.failed:
        result = store.read(job.key)
        console.print(f"[red]failed[/red]: {job.name}: ", end="")
        console.print(result.error if result else "", markup=False, highlight=False)
    for remark in workers.remarks:
        console.print(remark, markup=False, highlight=False)


def workers_for(asked: Sweep, out: Path, ray: str | None) -> Workers:
    """Processes of this machine, or the machines of a Ray cluster.

    Raises:
        UserError: the cluster cannot be used.
    """
    from qlab.artifacts.budget import parse_bytes
    from qlab.sweep.jobs import LOGS
    from qlab.sweep.workers.connecting import connect
    from qlab.sweep.workers.local import Local, free_memory, jobs_at_once

    limits, logs = asked.limits, out / LOGS
    if ray is not None:
        return connect(ray, logs, (out / LOCK).absolute(), limits.threads, asked.device)
    memory = parse_bytes(limits.memory) if limits.memory else free_memory()
    return Local(logs, memory, jobs_at_once(asked.device, limits.threads), limits.threads)


def show_plan(jobs: Sequence[Job], missing: set[str], store: Store, workers: Workers) -> None:
    """The jobs with what they will take, and in a sentence what the `missing` ones take together. What is done and needed by another job is
    checked, in seconds: it is done again only where what it made is gone."""
    from qlab.artifacts.budget import size_text
    from qlab.artifacts.duration import time_text

    checked = {job.key for job in jobs if job.key in missing and store.done(job)}
    states = {job.key: "to check" if job.key in checked else "to do" if job.key in missing else "done" for job in jobs}
    rows = [(job.name, states[job.key], size_text(job.memory), time_text(job.seconds)) for job in jobs]
    print(aligned(("job", "", "memory", "time of one thread"), rows))
    left = missing - checked
    total = time_text(sum(job.seconds for job in jobs if job.key in left) / workers.at_once)
    again = f", {len(checked)} to check" if checked else ""
    print(f"{len(jobs)} jobs, {len(left)} to do{again}, about {total} with {workers.at_once} at a time {workers.described}")


def tell_in_lines(progress: Progress, told: set[str]) -> None:
    """Where no terminal shows the table of what is at work: a line for each job that has ended since, which `told` holds then."""
    if console.is_terminal:
        return
    for state, group in (("done", progress.done), ("failed", progress.failed)):
        for job in group:
            if job.key not in told:
                told.add(job.key)
                console.print(f"{job.name}: {state}. {sentence(progress)}", markup=False, highlight=False)


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
