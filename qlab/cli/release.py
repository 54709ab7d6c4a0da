"""`qlab finetune` and `qlab release`: from a domain's text to a served model, through gates."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qlab.cli.app import CalibrationOption, DeviceOption, ModelOption, StrictOption, app
from qlab.cli.numbers import SEED, TOKENS, WINDOWS, real, whole
from qlab.support.errors import UserError

LARGEST_RANK = 1024  # of an adapter that is trained; the largest that others use is 512


@app.command()
def finetune(
    path: Annotated[str, typer.Argument(help="A model in NF4: a folder that 'qlab quantize --recipe nf4' made.")],
    text: Annotated[list[str], typer.Option(help="The domain's text: names and files as for the calibration of qlab quantize.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapter; must not exist.")],
    windows: Annotated[int, whole("Windows of text, at most.", 1, WINDOWS)] = 512,
    length: Annotated[int, whole("Tokens a window.", 2, TOKENS)] = 256,
    steps: Annotated[int, whole("Optimizer steps.", 1, 10**6)] = 100,
    batch: Annotated[int, whole("Windows a step.", 1, 4096)] = 4,
    rank: Annotated[int, whole("Rank of the adapter; its alpha is twice that.", 1, LARGEST_RANK)] = 16,
    rate: Annotated[float, real("Adam's learning rate; 2e-4 and less for models of billions of parameters.", 0, 1)] = 1e-3,
    seed: Annotated[int, whole("For the adapter's start and the order of windows.", 0, SEED)] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Train a LoRA adapter on a model that stays in NF4 (QLoRA)."""
    from qlab.workbook.lesson import quiet

    quiet()  # first: peft brings bitsandbytes, which warns as it is imported
    from qlab.models.loading import load_tokenizer
    from qlab.models.opening import check_length, found_device, locate
    from qlab.models.texts.tokens import embedding_rows
    from qlab.models.texts.windows import read_windows
    from qlab.release.finetune import Training
    from qlab.release.finetune import finetune as train

    device = found_device(device)
    source = locate(path)
    check_length(source, length, "--length")
    training = Training(rank, 2 * rank, rate, steps, batch, seed)
    reading = read_windows(text, load_tokenizer(source), length, windows, embedding_rows(source.config))
    print("\n".join(reading.lines("training")))
    losses = train(source, reading.windows, out, training, device)
    tenth = max(1, steps // 10)
    first, last = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
    print(
        f"{out}: loss {first:.3f} over the first {tenth} steps, {last:.3f} over the last; merge and check it: qlab release --adapter {out}"
    )


@app.command()
def release(
    out: Annotated[Path, typer.Option(help="Folder of the releases; OUT/current is the one to serve.")],
    recipe: Annotated[str, typer.Option(help="As for qlab quantize.")] = "q4_k_m",
    model: ModelOption = "embedded",
    adapter: Annotated[Path | None, typer.Option(help="LoRA adapter of this model, as peft or qlab finetune saves it.")] = None,
    calibration: CalibrationOption = ["docstrings"],  # noqa: B006 - the option parser copies it
    windows: Annotated[int, whole("Calibration windows.", 1, WINDOWS)] = 128,
    length: Annotated[int, whole("Tokens a window.", 2, TOKENS)] = 512,
    text: Annotated[
        list[str], typer.Option(help="Text for the gates that neither training nor calibration saw; names and files as for --calibration.")
    ] = ["python-reference"],  # noqa: B006
    text_windows: Annotated[int, whole("Windows of it, of --length tokens.", 2, WINDOWS)] = 40,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            help="kl=…, top1=… (at least), perplexity=… (over the model's before). May be repeated; else kl=0.1 top1=0.8 perplexity=1.05."
        ),
    ] = None,
    runtime: Annotated[str | None, typer.Option(help="That the proof is served by; else the first here that serves the format.")] = None,
    device: DeviceOption = "auto",
    strict: StrictOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line.")] = False,
) -> None:
    """Merge, quantize, gate, prove, and move OUT/current; a release that fails is refused and leaves OUT/current as it is."""
    from qlab.workbook.lesson import quiet

    quiet()  # first: peft brings bitsandbytes, which warns as it is imported
    from qlab.artifacts.artifact import fit
    from qlab.models.loading import load_tokenizer
    from qlab.models.opening import check_length, found_device, locate
    from qlab.models.texts.tokens import embedding_rows
    from qlab.models.texts.windows import read_windows
    from qlab.recipes import parse
    from qlab.release.release import FIGURES, GATES, Gate
    from qlab.release.release import release as attempt
    from qlab.serve.runtimes.registry import runtime_for, runtime_named

    device = found_device(device)
    gates = [Gate.parse(words) for words in gate] if gate else list(GATES)
    source, wanted = locate(model), parse(recipe)
    check_length(source, length, "--length")
    for remark in fit(source, [wanted], strict)[0].remarks:
        print(remark)
    tokenizer = load_tokenizer(source)
    chosen = runtime_named(runtime) if runtime else runtime_for(wanted.format)
    rows = embedding_rows(source.config)
    seen, held_out = read_windows(calibration, tokenizer, length, windows, rows), read_windows(text, tokenizer, length, text_windows, rows)
    if not as_json:
        print("\n".join([*seen.lines("calibration"), *held_out.lines("gates")]))
    found = attempt(source, adapter, wanted, seen.windows, held_out.windows, chosen, out, gates, device, seen.as_dicts())
    if as_json:
        print(json.dumps(asdict(found) | {"path": str(found.path) if found.path else None}))
    else:
        for name, value in found.figures.items():
            print(f"{name} {value:.4g}: {FIGURES[name]}")
    if found.refused:
        raise UserError(f"release {found.id} is refused: {'; '.join(found.refused)}. {out}/current is as it was")
    if not as_json:
        print(f"release {found.id} is current; to serve it: qlab serve {found.path}")
