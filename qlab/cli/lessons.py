"""The lessons: `qlab run` and `qlab lessons` in batch; `qlab lab`, `qlab afresh` and `qlab progress` for who reads and works on them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qlab.cli.app import ModelOption, WaitOption, app, console
from qlab.cli.bench import keep
from qlab.cli.numbers import whole
from qlab.cli.words import readable, show, table
from qlab.support.errors import UserError
from qlab.workbook.language.spoken import ENGLISH, VARIABLE, speak, spoken

if TYPE_CHECKING:
    from qlab.workbook.batch.runner import Outcome

WIDE = 140  # characters, where nobody watches
QUALITY = "quality/"  # begins the names of records of quality (qlab.workbook.lesson)
ON_TERMINALS = (
    "format", "run by", "MB on disk", "MB at the peak", "perplexity", "KL to FP16 (nats/token)", "prompt tok/s", "generation tok/s",
)  # fmt: skip
LanguageOption = Annotated[str, typer.Option(envvar=VARIABLE, help="Language of the lessons, their copies and the report: en or fr.")]


@app.command()
def run(
    lessons: Annotated[list[str] | None, typer.Argument(help="Lessons, such as 03_gptq or 03; all of them if none is named.")] = None,
    model: ModelOption = "embedded",
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", metavar="NAME VALUE", help="A lesson's parameter. May be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("build/report"),
    fresh: Annotated[bool, typer.Option(help="Do everything again, also what is done.")] = False,
    language: LanguageOption = ENGLISH,
    wait: WaitOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line, in place of the table.")] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Only say what memory, disk and time it would take, and what stands in its way; no weights are fetched.")
    ] = False,
) -> None:
    """Execute lessons by papermill and write the report. Finished lessons are not done again."""
    from qlab.artifacts.going_on import LOCK
    from qlab.evaluate.store.provenance import provenance
    from qlab.evaluate.store.results import STORE, Figure, Subject
    from qlab.models.opening import locate
    from qlab.show.progress import LessonProgress
    from qlab.show.site.report import check_report, write_report
    from qlab.support.disk.lock import locked
    from qlab.support.disk.room import room_for
    from qlab.support.processes.starting import preload
    from qlab.workbook.batch.copied import imports_of
    from qlab.workbook.batch.runner import DONE, prepare, run_lessons

    speak(language)
    if dry_run:
        show_forecast(chosen_lessons(lessons or []), model, pairs(parameter or []), as_json)
        return
    chosen, given = chosen_lessons(lessons or []), pairs(parameter or [])
    preload(*imports_of(locate(model)))
    values = prepare(chosen, model, given)
    check_report(out, values, locate(model).path)
    say_untranslated(list(values))
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    def keep_figures(outcome: Outcome) -> None:
        if new := outcome.records.get("figures"):
            keep(str(out.parent / STORE.name), model, [(Subject(**e["subject"]), [Figure(**f) for f in e["figures"]]) for e in new])

    with locked(out / LOCK, str(out), wait), room_for(out):
        with LessonProgress(list(values), console) as progress:
            outcomes = run_lessons(values, out, fresh, progress.update, keep_figures)
        index = write_report(outcomes, provenance(model), out)
    if as_json:
        print(json.dumps({"lessons": {outcome.lesson: told(outcome) for outcome in outcomes}}))
    else:
        print_results(outcomes)
    console.print(f"{time.monotonic() - started:.0f} s. Report: {index}", highlight=False)
    for outcome in outcomes:
        if outcome.state != DONE:
            where = f" in cell {outcome.cell}" if outcome.cell else ""
            colour = "red" if outcome.broken else "yellow"
            console.print(f"[{colour}]{outcome.lesson} {outcome.state}[/{colour}]{where}: ", end="")
            console.print(readable(outcome.error), markup=False, highlight=False)
    if any(outcome.broken for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def lessons() -> None:
    """List the lessons and their parameters."""
    from qlab.workbook.parameters import parameters_of
    from qlab.workbook.reader.about import NOTEBOOKS, lesson_names

    for lesson in lesson_names():
        print(lesson)
        for parameter in parameters_of(NOTEBOOKS / f"{lesson}.ipynb").values():
            print(f"  -p {parameter.name} {parameter.default!r:<26} {parameter.help}")


@app.command()
def lab(
    port: Annotated[int, whole("Port of this machine; the next free one if it is taken.", 1024, 65535)] = 8888,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    language: LanguageOption = ENGLISH,
) -> None:
    """Read the lessons in JupyterLab, on copies in workspace/, until Ctrl-C."""
    from jupyterlab.labapp import LabApp

    from qlab.show.site.front import options
    from qlab.workbook.reader.workspace import open_workspace

    speak(language)
    say_untranslated(chosen_lessons([]))
    open_workspace()
    LabApp.launch_instance(argv=options(port, browser))


@app.command()
def afresh(
    lessons: Annotated[list[str] | None, typer.Argument(help="Lessons, such as 03_gptq or 03; all of them if none is named.")] = None,
    language: LanguageOption = ENGLISH,
) -> None:
    """Bring lessons in workspace/ back as they came; your copies are set aside."""
    from qlab.workbook.reader.workspace import start_afresh

    speak(language)
    for file in start_afresh(chosen_lessons(lessons or [])):
        console.print(f"Your copy is now {os.path.relpath(file)}", highlight=False)


@app.command()
def teach(
    folder: Annotated[Path, typer.Argument(help="The folder to make.")],
    language: LanguageOption = ENGLISH,
) -> None:
    """Make copies of the lessons for a class, without solutions, and a file with all solutions for who teaches."""
    from qlab.workbook.exercises.teaching import TEACHER, write_class

    speak(language)
    made = write_class(folder)
    console.print(f"{len(made) - 1} lessons in {folder}; solutions, hints and mistakes in {folder / TEACHER}", highlight=False)


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


def chosen_lessons(names: list[str]) -> list[str]:
    """Full lesson names for what was typed, in the workbook's order.

    Raises:
        UserError: a name that fits no lesson.
    """
    from qlab.workbook.reader.about import lesson_names

    known = lesson_names()
    for name in names:
        if not name or not any(lesson.startswith(name) for lesson in known):
            raise UserError(f"no lesson {name[:60]!r}: expected one of {', '.join(known)}")
    return [lesson for lesson in known if not names or any(lesson.startswith(name) for name in names)]


def say_untranslated(lessons: list[str]) -> None:
    """Say of which cells the text stays English, where another language is spoken."""
    from qlab.workbook.language.lessons import faults
    from qlab.workbook.reader.about import NOTEBOOKS

    for lesson in lessons if spoken() != ENGLISH else []:
        if found := faults(NOTEBOOKS / f"{lesson}.ipynb", spoken()):
            console.print(f"{lesson}: {len(found)} cells have no translation of their present text and stay English", highlight=False)


def pairs(texts: list[str]) -> dict[str, str]:
    """NAME=VALUE texts as a dictionary.

    Raises:
        UserError: a text without "=".
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"-p {text!r}: expected a name and a value, such as -p evaluation_windows 8")
        found[name.strip()] = value.strip()
    return found


def show_forecast(lessons: list[str], model: str, given: dict[str, str], as_json: bool) -> None:
    """Print what a run would take, and what stands in its way."""
    from qlab.workbook.batch.forecast import forecast
    from qlab.workbook.language.spoken import gettext
    from qlab.workbook.lesson import quiet

    quiet()
    found = forecast(lessons, model, given).as_dict()
    if as_json:
        print(json.dumps(found))
        return
    print(*found["summary"], sep="\n")
    show(table(found["columns"], found["rows"]), WIDE)
    for note in found["notes"]:
        print(f"{gettext('Stops the run:') if note['stops'] else '-'} {note['said']} {note['todo']}".rstrip())


def told(outcome: Outcome) -> dict[str, Any]:
    """What became of a lesson, for programs: its state, and the quality of each model and artifact that it measured."""
    quality = {name.removeprefix(QUALITY): value for name, value in outcome.records.items() if name.startswith(QUALITY)}
    figures = {name: {key: figure for key, figure in value.items() if isinstance(figure, (int, float))} for name, value in quality.items()}
    cost = {"seconds": outcome.seconds, "peak_bytes": outcome.peak_bytes}
    return {"state": outcome.state, "error": outcome.error, "quality": figures} | cost


def print_results(outcomes: list[Any]) -> None:
    """The results table of lesson 07, where it ran."""
    found: dict[str, Any] | None = next((outcome.records["table"] for outcome in outcomes if "table" in outcome.records), None)
    if found:
        places = [place for place, column in enumerate(found["columns"]) if column in ON_TERMINALS]
        columns, rows = [found["columns"][place] for place in places], [[row[place] for place in places] for row in found["rows"]]
        made = table(columns, rows, "Results (all columns are in the report)")
        made.columns[0].no_wrap = True
        show(made, WIDE)
