"""`qlab lab`, `qlab afresh` and `qlab progress`: the lessons to read and work on."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from qlab.cli.app import app, console
from qlab.cli.lessons import chosen_lessons


@app.command()
def lab(
    port: Annotated[int, typer.Option(help="Port of this machine; the next free one if it is taken.", min=1024, max=65535)] = 8888,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
) -> None:
    """Read the lessons in JupyterLab, on copies in workspace/, until Ctrl-C."""
    from jupyterlab.labapp import LabApp

    from qlab.show.site.front import options
    from qlab.workbook.reader.workspace import open_workspace

    open_workspace()
    LabApp.launch_instance(argv=options(port, browser))


@app.command()
def afresh(
    lessons: Annotated[list[str] | None, typer.Argument(help="Lessons, such as 03_gptq or 03; all of them if none is named.")] = None,
) -> None:
    """Bring lessons in workspace/ back as they came; your copies are set aside."""
    from qlab.workbook.reader.workspace import start_afresh

    for file in start_afresh(chosen_lessons(lessons or [])):
        console.print(f"Your copy is now {os.path.relpath(file)}", highlight=False)


@app.command()
def progress(erase: Annotated[bool, typer.Option("--erase", help="Forget all progress.")] = False) -> None:
    """Show which exercises you have solved, or forget it."""
    from qlab.workbook.reader.about import every_lesson
    from qlab.workbook.reader.progress import erase_progress, read_progress

    if erase:
        erase_progress()
        return
    kept = read_progress()
    for lesson in every_lesson():
        entry = kept.get(lesson.lesson, {"right": [], "finished": False})
        right = sum(name in entry["right"] for name in lesson.exercises)
        print(f"{lesson.lesson:<16} {right} of {len(lesson.exercises)} exercises right{', run to its end' if entry['finished'] else ''}")
