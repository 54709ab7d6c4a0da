"""`qlab doctor`: what is installed, what works, and what mends the rest."""

from __future__ import annotations

import typer
from rich.text import Text

from qlab.cli.app import app
from qlab.cli.words import show, table


@app.command()
def doctor() -> None:
    """Check the environment: what is installed, what works here, and the command that mends what does not."""
    from qlab.doctor import examine

    colours = {"OK": "green", "missing": "yellow", "broken": "red"}
    findings = examine()
    rows = [(finding.subject, Text(finding.state, colours[finding.state]), finding.detail) for finding in findings]
    show(table(("", "state", "found"), rows))
    for finding in findings:
        if finding.mend:  # beneath the table and never broken into lines, so that it can be copied
            print(f"{finding.subject}: {finding.mend}")
    if any(finding.state != "OK" and not finding.optional for finding in findings):
        raise typer.Exit(1)
