"""The command line itself: what every command shares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import Console

from qlab import __version__
from qlab.support.errors import UserError

app = typer.Typer(
    help="Learn, check and carry out LLM quantization.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
console = Console(stderr=True, soft_wrap=True)
ModelOption = Annotated[str, typer.Option(help="'embedded', 'smollm2' (see qlab fetch), a model folder, or a hub id.")]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Refuse a recipe that the model's shapes do not fit, instead of taking the nearest that they do.")
]
CalibrationOption = Annotated[
    list[str],
    typer.Option(
        help="Text like what the model will read: docstrings, python-reference, prompts (the workbook's own, French and English), or "
        "a file of UTF-8 text or of JSON lines (messages, text or prompt). May be repeated, each with a weight: chat.jsonl:2."
    ),
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait for another process that works in the same folder, instead of an error.")]
DEBUG = "--debug"  # anywhere on the command line
DeviceOption = Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu, cuda, cuda:1, …")]


def version_flag(wanted: bool) -> None:
    if wanted:
        print(f"qlab {__version__}")
        raise typer.Exit


def interrupt(*_: object) -> None:
    """Stop in order, as by Ctrl-C: a signal's handler."""
    raise KeyboardInterrupt


def refuse(command: typer.Context, options: Iterable[str], why: str) -> None:
    """Raise the UserError of the first of `options` that was given to the command, which would ignore it; `why` says what it needs."""
    for option in options:
        source = command.get_parameter_source(option.removeprefix("--").replace("-", "_"))
        if source and source.name == "COMMANDLINE":
            raise UserError(f"{option} {why}")


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=version_flag, help="Show the version and exit.")] = False,
    debug: Annotated[bool, typer.Option(DEBUG, help="Show the traceback of an error.")] = False,  # taken out before this is called
) -> None:
    """Learn, check and carry out LLM quantization."""
