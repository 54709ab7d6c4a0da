"""The command line itself: what every command shares."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from qlab import __version__

app = typer.Typer(
    help="Learn, check and carry out LLM quantization.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
console = Console(stderr=True, soft_wrap=True)
ModelOption = Annotated[str, typer.Option(help="'embedded', 'smollm2' (see qlab fetch), a model folder, or a hub id.")]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Refuse a recipe that the model's shapes do not fit, instead of taking the nearest that they do.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")]


def version_flag(wanted: bool) -> None:
    if wanted:
        print(f"qlab {__version__}")
        raise typer.Exit


@app.callback()
def root(version: Annotated[bool, typer.Option("--version", callback=version_flag, help="Show the version and exit.")] = False) -> None:
    """Learn, check and carry out LLM quantization."""
