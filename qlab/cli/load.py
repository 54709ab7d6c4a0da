"""`qlab load`: how a server behaves when many ask at once."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qlab.cli.app import app
from qlab.cli.numbers import Bounded, real, whole
from qlab.cli.words import show, table
from qlab.support.errors import UserError

COLUMNS = (
    "at a time", "TTFT p50 / p99 (ms)", "TPOT p50 / p99 (ms)", "ITL p99 (ms)", "requests/s", "output tok/s", "lost", "changed", "wrong",
)  # fmt: skip
AT_A_TIME, LEVELS = Bounded(1, 10_000), 20


@app.command()
def load(
    url: Annotated[str, typer.Argument(help="A server with an OpenAI interface, such as http://127.0.0.1:8000.")],
    model: Annotated[str, typer.Option(help="The name under which it serves the model.")],
    concurrency: Annotated[
        str, typer.Option(help=f"Requests at a time, a list: up to {LEVELS} numbers from {AT_A_TIME.range}.")
    ] = "1,4,16",
    prompts: Annotated[Path | None, typer.Option(help="JSONL with a 'prompt' a line; else the 500 of this workbook.")] = None,
    tokens: Annotated[int, whole("Tokens of an answer.", 1, 100_000)] = 16,
    timeout: Annotated[float, real("Seconds in which an answer must be there, whole.", 0.1, 86_400)] = 60.0,
    api_key_file: Annotated[Path | None, typer.Option(help="File with the server's key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line.")] = False,
) -> None:
    """Send all prompts at rising concurrency: TTFT, TPOT, ITL, throughput, errors, and where the server saturates."""
    from qlab.models.texts.prompts import load_prompts
    from qlab.serve.deployment import read_key
    from qlab.serve.load import run_load, saturation

    wanted = levels_in(concurrency)
    texts = [entry["prompt"] for entry in load_prompts(prompts)]
    levels = run_load(url.rstrip("/"), model, texts, wanted, tokens, read_key(api_key_file) if api_key_file else None, timeout)
    if as_json:
        print(json.dumps({"levels": [asdict(level) for level in levels], "saturation": saturation(levels)}))
    else:
        milliseconds = lambda part, *names: " / ".join(f"{1000 * part[name]:.1f}" for name in names) if part else "none"  # noqa: E731
        rows = [
            (
                level.concurrency, milliseconds(level.ttft, "p50", "p99"), milliseconds(level.tpot, "p50", "p99"),
                milliseconds(level.itl, "p99"), f"{level.request_throughput:.1f}", f"{level.output_throughput:.0f}",
                ", ".join(f"{count} {kind}" for kind, count in level.errors.items()) or "0", level.changed, level.wrong,
            )
            for level in levels
        ]  # fmt: skip
        show(table(COLUMNS, rows))
        found = saturation(levels)
        print(f"throughput stops growing beyond {found} at a time" if found else "throughput still grew at the last level")
    if any(level.errors or level.wrong for level in levels):
        raise typer.Exit(1)


def levels_in(text: str) -> list[int]:
    """Numbers with commas between.

    Raises:
        UserError: one is no number from 1 to 10,000, or they are too many.
    """
    words = text.split(",")
    if len(words) > LEVELS:
        raise UserError(f"--concurrency has {len(words):,} numbers: expected {LEVELS} at most")
    try:
        return [AT_A_TIME(word) for word in words]
    except typer.BadParameter as error:
        raise UserError(f"--concurrency: {error.message}, with commas between, such as 1,4,16") from error
