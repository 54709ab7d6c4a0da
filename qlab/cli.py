"""The command line: a thin face over the engine."""

from __future__ import annotations

import errno
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from qlab import __version__
from qlab.errors import UserError

app = typer.Typer(
    help="Learn, check and carry out LLM quantization.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
console = Console(stderr=True, soft_wrap=True)
INTERRUPTED = 130
ModelOption = Annotated[str, typer.Option(help="'embedded', a model folder, or a hub id.")]


def version_flag(wanted: bool) -> None:
    if wanted:
        print(f"qlab {__version__}")
        raise typer.Exit


@app.callback()
def root(version: Annotated[bool, typer.Option("--version", callback=version_flag, help="Show the version and exit.")] = False) -> None:
    """Learn, check and carry out LLM quantization."""


@app.command()
def run(
    lessons: Annotated[list[str] | None, typer.Argument(help="Lessons, such as 03_gptq or 03; all of them if none is named.")] = None,
    model: ModelOption = "embedded",
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", metavar="NAME VALUE", help="A lesson's parameter. May be repeated.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("build/report"),
    fresh: Annotated[bool, typer.Option(help="Do everything again, also what is done.")] = False,
) -> None:
    """Execute lessons by papermill and write the report. Finished lessons are not done again."""
    from qlab.report import write_report
    from qlab.show.progress import LessonProgress
    from qlab.workbook import DONE, prepare, provenance, run_lessons

    values = prepare(chosen_lessons(lessons or []), model, pairs(parameter or []))
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with LessonProgress(list(values), console) as progress:
        outcomes = run_lessons(values, out, fresh, progress.update)
    index = write_report(outcomes, provenance(model), out)
    print_results(outcomes)
    console.print(f"{time.monotonic() - started:.0f} s. Report: {index}", highlight=False)
    for outcome in outcomes:
        if outcome.state != DONE:
            where = f" in cell {outcome.cell}" if outcome.cell else ""
            console.print(f"[red]{outcome.lesson} {outcome.state}[/red]{where}: ", end="")
            console.print(outcome.error, markup=False, highlight=False)
    if any(outcome.state != DONE for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def lessons() -> None:
    """List the lessons and their parameters."""
    from qlab.parameters import parameters_of
    from qlab.workbook import NOTEBOOKS, lesson_names

    for lesson in lesson_names():
        print(lesson)
        for parameter in parameters_of(NOTEBOOKS / f"{lesson}.ipynb").values():
            print(f"  -p {parameter.name} {parameter.default!r:<26} {parameter.help}")


@app.command()
def evaluate(
    path: Annotated[str, typer.Argument(help="A model or artifact: 'embedded', a folder, a hub id.")],
    text: Annotated[str, typer.Option(help="'python-reference', 'docstrings' or a UTF-8 file.")] = "python-reference",
    window: Annotated[int, typer.Option(min=2, help="Tokens a window.")] = 512,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens to read, at most.")] = 20480,
    reference: Annotated[str | None, typer.Option(help="Also the distance from this model.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line.")] = False,
) -> None:
    """Token perplexity of a model or artifact over non-overlapping windows; with --reference also KL divergence."""
    import torch

    from qlab.evaluate.quality import measure_quality
    from qlab.lesson import quiet
    from qlab.model import check_device, load, load_tokenizer, locate
    from qlab.text import load_text, windows

    quiet()
    check_device(device)
    source = locate(path)
    original = locate(reference) if reference else None
    batch = windows(load_text(text), load_tokenizer(original or source), window, max(1, tokens // window))
    model = load(source, torch.float32, device)
    quality = measure_quality(model, batch, load(original, torch.float32, device) if original else None)
    if as_json:
        print(json.dumps({name: value for name, value in quality.as_dict().items() if isinstance(value, (int, float))}))
        return
    print(f"perplexity {quality.perplexity:.3f} ± {quality.stderr:.3f}  ({quality.tokens:,} tokens, windows of {quality.window})")
    if quality.kl is not None:
        print(f"KL to {reference} {quality.kl:.5f} ± {quality.kl_stderr:.5f} nats/token; same top token {quality.top1:.1%}")


@app.command()
def quantize(
    recipe: Annotated[
        list[str], typer.Option(help="Such as awq-w4g128, gptq-w4g128, tuned-w4g128, nf4, q4_k_m. May be repeated: one walk makes all.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the artifacts; each lies in OUT/RECIPE.")],
    model: ModelOption = "embedded",
    calibration: Annotated[str, typer.Option(help="'docstrings' or a UTF-8 file: text like what the model will read.")] = "docstrings",
    windows: Annotated[int, typer.Option(min=1, help="Calibration windows.")] = 128,
    length: Annotated[int, typer.Option(min=2, help="Tokens a window.")] = 512,
    max_memory: Annotated[str | None, typer.Option(help="Stay below this, such as 8GiB, by computing fewer windows at a time.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    dry_run: Annotated[bool, typer.Option(help="Only print what memory, disk and time it would take.")] = False,
) -> None:
    """Quantize a model by one or more recipes in one pass over its blocks. Interrupted, the same command goes on."""
    import qlab.budget as budget
    from qlab.artifact import check, quantize_model
    from qlab.lesson import quiet
    from qlab.model import check_device, load_tokenizer, locate
    from qlab.recipes import parse
    from qlab.text import load_text
    from qlab.text import windows as cut

    quiet()
    check_device(device)
    recipes = [parse(name) for name in dict.fromkeys(recipe)]
    source = locate(model)
    check(source, recipes)
    limit = budget.parse_bytes(max_memory) if max_memory else None
    batch = cut(load_text(calibration), load_tokenizer(source), length, windows)
    plan = budget.predict(source, recipes, tuple(batch.shape), limit, device)
    print(plan.text())
    plan.check(out, device)
    if dry_run:
        return
    for artifact in quantize_model(source, recipes, batch, out, plan.batch, device):
        worst = max(artifact.errors, key=lambda name: artifact.errors[name], default="")
        found = f", worst layer {worst} {artifact.errors[worst]:.2%}" if worst else ""
        print(f"{artifact.path}: {artifact.disk_bytes / 1e6:.1f} MB in {artifact.seconds:.0f} s{found}")
        for name, note in artifact.manifest["notes"].items():
            print(f"  {name}: {note}")
    print(f"peak memory {budget.gigabytes(budget.peak_bytes())} (predicted {budget.gigabytes(plan.total)})")


@app.command()
def doctor() -> None:
    """Check the environment: what is installed, what works here, and the command that mends what does not."""
    from qlab.doctor import examine

    table = Table("", "state", "found")
    colours = {"OK": "green", "missing": "yellow", "broken": "red"}
    findings = examine()
    for finding in findings:
        table.add_row(finding.subject, f"[{colours[finding.state]}]{finding.state}[/]", finding.detail)
    Console().print(table)
    for finding in findings:
        if finding.mend:  # beneath the table and never broken into lines, so that it can be copied
            print(f"{finding.subject}: {finding.mend}")
    if any(finding.state != "OK" and not finding.subject.startswith("runtime") for finding in findings):
        raise typer.Exit(1)


def chosen_lessons(names: list[str]) -> list[str]:
    """Full lesson names for what was typed, in the workbook's order.

    Raises:
        UserError: a name that fits no lesson.
    """
    from qlab.workbook import lesson_names

    known = lesson_names()
    for name in names:
        if not any(lesson.startswith(name) for lesson in known):
            raise UserError(f"no lesson {name!r}: expected one of {', '.join(known)}")
    return [lesson for lesson in known if not names or any(lesson.startswith(name) for name in names)]


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


def print_results(outcomes: list[Any]) -> None:
    """The results table of lesson 07, where it ran."""
    found: dict[str, Any] | None = next((outcome.records["table"] for outcome in outcomes if "table" in outcome.records), None)
    if found:
        table = Table(*found["columns"], title="Results", title_justify="left")
        for row in found["rows"]:
            table.add_row(*row)
        wide = Console()
        Console(width=wide.width if wide.is_terminal else 140).print(table)


def joined(arguments: list[str]) -> list[str]:
    """papermill's `-p name value` as one word, `name=value`, which is what the option parser takes."""
    done, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        if word in ("-p", "--parameter") and len(rest) > 1 and "=" not in rest[0]:
            done += [word, f"{rest.pop(0)}={rest.pop(0)}"]
        else:
            done.append(word)
    return done


def main() -> None:
    """The console script: errors that the user can mend are one message and exit code 2."""
    sys.exit(call(sys.argv[1:]))


def call(arguments: list[str]) -> int:
    """Run one command line; the exit code."""
    try:
        code = typer.main.get_command(app).main(joined(arguments), prog_name="qlab", standalone_mode=False) or 0
        if code == INTERRUPTED:  # the option parser catches Ctrl-C itself
            raise KeyboardInterrupt
        return code
    except (UserError, typer.TyperException) as error:
        message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        console.print("[red]error:[/red] ", end="")
        console.print(message, markup=False, highlight=False)
        return 2
    except (typer.Abort, KeyboardInterrupt):
        console.print("interrupted; finished lessons are kept, and the same command goes on from there")
        return INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EEXIST, errno.ENOTDIR):
            raise
        console.print("[red]error:[/red] ", end="")
        console.print(f"cannot write: {error.strerror} ({error.filename}). Make room, or choose another folder", markup=False)
        return 2


if __name__ == "__main__":
    main()
