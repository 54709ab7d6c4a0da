"""`qlab load`: how a server behaves when many ask at once."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from qlab.cli.app import app
from qlab.support.errors import UserError


@app.command()
def load(
    url: Annotated[str, typer.Argument(help="A server with an OpenAI interface, such as http://127.0.0.1:8000.")],
    model: Annotated[str, typer.Option(help="The name under which it serves the model.")],
    concurrency: Annotated[str, typer.Option(help="Requests at a time, a list.")] = "1,4,16",
    prompts: Annotated[Path | None, typer.Option(help="JSONL with a 'prompt' a line; else the 500 of this workbook.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 16,
    api_key_file: Annotated[Path | None, typer.Option(help="File with the server's key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line.")] = False,
) -> None:
    """Send all prompts at rising concurrency: TTFT, TPOT, ITL, throughput, errors, and where the server saturates."""
    from qlab.models.texts.prompts import load_prompts
    from qlab.serve.deployment import read_key
    from qlab.serve.load import run_load, saturation

    try:
        wanted = [int(word) for word in concurrency.split(",")]
    except ValueError as error:
        raise UserError(f"--concurrency {concurrency!r}: expected whole numbers with commas between, such as 1,4,16") from error
    texts = [entry["prompt"] for entry in load_prompts(prompts)]
    levels = run_load(url.rstrip("/"), model, texts, wanted, tokens, read_key(api_key_file) if api_key_file else None)
    if as_json:
        print(json.dumps({"levels": [asdict(level) for level in levels], "saturation": saturation(levels)}))
        return
    columns = (
        "at a time",
        "TTFT p50 / p99 (ms)",
        "TPOT p50 / p99 (ms)",
        "ITL p99 (ms)",
        "requests/s",
        "output tok/s",
        "lost",
        "changed",
        "wrong",
    )
    table = Table(*columns)
    for level in levels:
        show = lambda part, *names: " / ".join(f"{1000 * part[name]:.1f}" for name in names) if part else "none"  # noqa: E731
        table.add_row(
            str(level.concurrency), show(level.ttft, "p50", "p99"), show(level.tpot, "p50", "p99"), show(level.itl, "p99"),
            f"{level.request_throughput:.1f}", f"{level.output_throughput:.0f}",
            ", ".join(f"{count} {kind}" for kind, count in level.errors.items()) or "0", str(level.changed), str(level.wrong),
        )  # fmt: skip
    Console().print(table)
    found = saturation(levels)
    print(f"throughput stops growing beyond {found} at a time" if found else "throughput still grew at the last level")
    if any(level.errors or level.wrong for level in levels):
        raise typer.Exit(1)
