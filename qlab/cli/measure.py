"""`qlab evaluate`: the quality of any model or artifact."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from qlab.cli.app import DeviceOption, app


@app.command()
def evaluate(
    path: Annotated[str, typer.Argument(help="A model or artifact: 'embedded', a folder, a hub id.")],
    text: Annotated[str, typer.Option(help="'python-reference', 'docstrings' or a UTF-8 file.")] = "python-reference",
    window: Annotated[int, typer.Option(min=2, help="Tokens a window.")] = 512,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens to read, at most.")] = 20480,
    reference: Annotated[str | None, typer.Option(help="Also the distance from this model.")] = None,
    device: DeviceOption = "cpu",
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
