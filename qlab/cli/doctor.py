"""`qlab doctor`: what is installed, what works, and what mends the rest."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table

from qlab.cli.app import app


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
    if any(finding.state != "OK" and not finding.optional for finding in findings):
        raise typer.Exit(1)
