"""`qlab quantize`: one walk over a model, any number of recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qlab.cli.app import DeviceOption, ModelOption, StrictOption, app


@app.command()
def quantize(
    recipe: Annotated[
        list[str], typer.Option(help="Such as awq-w4g128, gptq-w4g128, tuned-w4g128, nf4, q4_k_m. May be repeated: one walk makes all.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the artifacts; each lies in OUT/RECIPE.")],
    model: ModelOption = "embedded",
    calibration: Annotated[str, typer.Option(help="'docstrings' or a UTF-8 file: text like what the model will read.")] = "docstrings",
    windows: Annotated[int, typer.Option(min=1, help="Calibration windows.")] = 128,
    length: Annotated[int, typer.Option(min=2, help="Tokens a window.")] = 512,
    max_memory: Annotated[str | None, typer.Option(help="Stay below this, such as 8GiB, by computing fewer windows at a time.")] = None,
    device: DeviceOption = "cpu",
    strict: StrictOption = False,
    dry_run: Annotated[
        bool, typer.Option(help="Only print what memory, disk and time it would take; a folder with a config.json is enough.")
    ] = False,
) -> None:
    """Quantize a model by one or more recipes in one pass over its blocks. Interrupted, the same command goes on."""
    import qlab.artifacts.budget as budget
    from qlab.artifacts.artifact import fit, quantize_model
    from qlab.models.loading import load_tokenizer
    from qlab.models.opening import check_device, check_length, locate
    from qlab.models.text import load_text
    from qlab.models.text import windows as cut
    from qlab.recipes import parse
    from qlab.recipes.fitting import first_and_number
    from qlab.workbook.lesson import quiet

    quiet()
    check_device(device)
    recipes = [parse(name) for name in dict.fromkeys(recipe)]
    source = locate(model, weights=not dry_run)
    check_length(source, length, "--length")
    fitted = fit(source, recipes, strict)
    for remark in (remark for each in fitted for remark in each.remarks):
        print(remark)
    if source.checkpoint.quantized:
        print(
            f"{source.name} was quantized before ({source.checkpoint.description}) and is decoded: what it lost then stays lost, "
            "and errors are measured against the decoded weights"
        )
    limit = budget.parse_bytes(max_memory) if max_memory else None
    plan = budget.predict(source, [each.recipe for each in fitted], (windows, length), limit, device)
    print(plan.text())
    if dry_run:
        return
    plan.check(out, device)
    batch = cut(load_text(calibration), load_tokenizer(source), length, windows)
    for artifact in quantize_model(source, recipes, batch, out, plan.batch, device):
        worst = max(artifact.errors, key=lambda name: artifact.errors[name], default="")
        found = f", worst layer {worst} {artifact.errors[worst]:.2%}" if worst else ""
        print(f"{artifact.path}: {artifact.disk_bytes / 1e6:.1f} MB in {artifact.seconds:.0f} s{found}")
        notes = artifact.manifest["notes"]
        for note in dict.fromkeys(notes.values()):
            print(f"  {first_and_number([name for name in notes if notes[name] == note])}: {note}")
    print(f"peak memory {budget.gigabytes(budget.peak_bytes())} (predicted {budget.gigabytes(plan.total)})")
