"""`qlab quantize`: one walk over a model, any number of recipes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qlab.cli.app import CalibrationOption, DeviceOption, ModelOption, StrictOption, WaitOption, app
from qlab.cli.numbers import TOKENS, WINDOWS, real, whole

if TYPE_CHECKING:
    from qlab.recipes import WalkedRecipe

WIDTHS_CHOSEN = "4,8"
JUDGED_WINDOWS = 8  # of the calibration text, that widths are chosen by


@app.command()
def quantize(
    recipe: Annotated[
        list[str],
        typer.Option(help="Such as awq-gptq-w4g128, gptq-w4g128, rtn-fp8, nf4, q4_k_m. May be repeated: one walk makes all."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the artifacts; each lies in OUT/RECIPE.")],
    model: ModelOption = "embedded",
    calibration: CalibrationOption = ["docstrings"],  # noqa: B006 - the option parser copies it
    windows: Annotated[int, whole("Calibration windows.", 1, WINDOWS)] = 128,
    length: Annotated[int, whole("Tokens a window.", 2, TOKENS)] = 512,
    max_memory: Annotated[str | None, typer.Option(help="Stay below this, such as 8GiB, by computing fewer windows at a time.")] = None,
    device: DeviceOption = "auto",
    devices: Annotated[str | None, typer.Option(help="GPUs that share the blocks: cuda:0,cuda:1 or all. Bytes stay the same.")] = None,
    strict: StrictOption = False,
    wait: WaitOption = False,
    bits: Annotated[
        float | None, real("Bits a weight, scales included, such as 4.25: layers that matter more get more of them.", 1, 16)
    ] = None,
    size: Annotated[str | None, typer.Option(help="As --bits, for weight files of this size, such as 4.5GB.")] = None,
    card: Annotated[
        str | None, typer.Option("--fit", help="As --bits, for what this card holds beside the KV cache: 'RTX 4090', of `qlab plan`.")
    ] = None,
    context: Annotated[int, whole("With --fit: tokens a sequence, prompt and answer.", 1, 10**8)] = 4096,
    sequences: Annotated[int, whole("With --fit: sequences served at once.", 1, 10**6)] = 1,
    cache: Annotated[str, typer.Option(help="With --fit: what the KV cache is kept in: f16, q8_0, q4_0 or fp8.")] = "f16",
    widths: Annotated[
        str, typer.Option(help="With a budget: what a layer may have, of 2 to 8 and 16. vLLM 0.32 reads 2, 4, 8 and 16.")
    ] = WIDTHS_CHOSEN,
    group_sizes: Annotated[
        str, typer.Option(help="With a budget: group sizes that a layer may have beside the recipe's own, such as 32,64.")
    ] = "",
    types: Annotated[str, typer.Option(help="GGUF, with --bits: what a tensor's type may be, such as Q3_K,Q4_K,Q6_K.")] = "",
    keep: Annotated[list[str], typer.Option(help="With a budget: layers that stay in half precision, a regular expression.")] = [],  # noqa: B006
    set_width: Annotated[list[str], typer.Option("--set", help="With a budget: the width of layers, PATTERN=8.")] = [],  # noqa: B006
    tensor_type: Annotated[
        list[str], typer.Option(help="GGUF: PATTERN=TYPE, such as 'ffn_down=Q6_K', for tensors whose GGUF name the pattern fits.")
    ] = [],  # noqa: B006
    output_type: Annotated[str, typer.Option(help="GGUF: the output's type, such as Q8_0.")] = "",
    embedding_type: Annotated[str, typer.Option(help="GGUF: the token embedding's type, such as Q4_K.")] = "",
    imatrix: Annotated[
        list[Path], typer.Option(help="GGUF: importance from a file of llama-imatrix or 'qlab imatrix'. May be repeated: files are merged.")
    ] = [],  # noqa: B006
    profile: Annotated[bool, typer.Option(help="Print at the end where the time went, by stage; it takes somewhat longer then.")] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Only print what memory, disk and time it would take; a folder with a config.json is enough.")
    ] = False,
) -> None:
    """Quantize a model by one or more recipes in one pass over its blocks. Interrupted, the same command goes on."""
    from qlab.support.processes.starting import starting

    if devices and ("," in devices or devices == "all") and not dry_run:
        starting()  # the process that several devices' processes are copied from: it imports for seconds, while this one does too
    import qlab.artifacts.budget as budget
    from qlab.artifacts.artifact import fit, quantize_model
    from qlab.artifacts.room import budget_from
    from qlab.evaluate.damage.cost import choosing_bytes
    from qlab.evaluate.damage.gguf_types import TYPES, choose_types, offered_types, types_in
    from qlab.evaluate.damage.widths import choose_widths, widest
    from qlab.models.loading import load_tokenizer
    from qlab.models.opening import already_rounded, check_length, found_device, found_devices, left_out, locate
    from qlab.models.texts.mixture import check_texts
    from qlab.models.texts.tokens import embedding_rows
    from qlab.models.texts.windows import read_windows
    from qlab.recipes import GGUF, parse
    from qlab.recipes.mixed import check_mixable, exceptions_in, sizes_in, widths_in
    from qlab.support.errors import UserError
    from qlab.support.stages import profiled
    from qlab.support.wording import first_and_number
    from qlab.workbook.lesson import quiet

    quiet()
    if profile and devices:
        raise UserError("--profile tells where the time goes on one device: leave out --devices")
    device, *beside = [found_device(device)] if devices is None else found_devices(devices)
    recipes = with_options([parse(name) for name in dict.fromkeys(recipe)], tensor_type, output_type, embedding_type, imatrix)
    by_budget = (bits, size, card) != (None, None, None)
    if not by_budget and (keep or set_width or group_sizes or widths != WIDTHS_CHOSEN):
        raise UserError("--widths, --group-sizes, --keep and --set are for widths by budget: give --bits (such as 4.25), --size or --fit")
    if by_budget and len(recipes) != 1:
        raise UserError(f"a budget makes one artifact: give one --recipe, not {len(recipes)}")
    typed = by_budget and isinstance(recipes[0], GGUF)
    if typed and (bits is None or keep or set_width or group_sizes or widths != WIDTHS_CHOSEN):
        raise UserError(
            "a budget of a GGUF file is --bits of its blocks' tensors, such as --bits 4.5 --types Q3_K,Q4_K,Q6_K; for single tensors there "
            "is --tensor-type"
        )
    if types and not typed:
        raise UserError("--types is for a GGUF file's types by budget: give --bits (such as 4.5) and a recipe such as q4_k_m")
    kinds = types_in(types or TYPES)
    if by_budget and not typed:
        check_mixable(recipes[0])
    offered, sizes, exceptions = widths_in(widths), sizes_in(group_sizes), exceptions_in(keep, set_width)
    check_texts(calibration)
    source = locate(model, weights=not dry_run)
    if source.checkpoint.quantized:
        print(already_rounded(source))
    check_length(source, length, "--length")
    fitted = fit(source, recipes, strict)
    for remark in (remark for each in fitted for remark in each.remarks):
        print(remark)
    if left := source.check_complete():
        print(left_out(source, left))
    remarks = {subject: remark for each in fitted for subject, remark in each.recipe.remarks(source).items()}
    for subject, remark in remarks.items():
        print(f"{subject}: {remark}")
    asked = budget_from(source, bits, budget.parse_bytes(size) if size is not None else None, card, context, sequences, cache)
    limit = budget.parse_bytes(max_memory) if max_memory is not None else None
    choosing = choosing_bytes(source, min(windows, JUDGED_WINDOWS), length) if asked else 0.0
    counted = [each.recipe for each in fitted]
    if isinstance(counted[0], GGUF) and bits is not None:
        offered_types(source, counted[0], bits, kinds)  # whether they fit is known before the work
    elif asked:
        counted = [widest(source, check_mixable(counted[0]), asked, offered, exceptions, sizes)]
    plan = budget.predict(source, counted, (windows, length), limit, device, 1 + len(beside), choosing)
    print(plan.text())
    if dry_run:
        return
    for each in (device, *beside):
        plan.check(out, each)
    reading = read_windows(calibration, load_tokenizer(source), length, windows, embedding_rows(source.config))
    print("\n".join(reading.lines("calibration")))
    chosen: WalkedRecipe
    if asked:
        some, base = reading.windows[:JUDGED_WINDOWS], fitted[0].recipe
        if isinstance(base, GGUF) and bits is not None:
            chosen, told = choose_types(source, base, bits, kinds, some, device)
        else:
            chosen, told = choose_widths(source, check_mixable(base), asked, offered, exceptions, some, device, sizes)
        recipes = [chosen]
        print("\n".join(told))
    with profiled(device) if profile else nullcontext() as stages:
        made = quantize_model(source, recipes, reading.windows, out, plan.batch, device, reading.as_dicts(), beside, wait)
    for artifact in made:
        worst = max(artifact.errors, key=lambda name: artifact.errors[name], default="")
        found = f", worst layer {worst} {artifact.errors[worst]:.2%}" if worst else ""
        print(f"{artifact.path}: {artifact.disk_bytes / 1e6:.1f} MB in {artifact.seconds:.0f} s{found}")
        notes = {name: note for name, note in artifact.manifest["notes"].items() if name not in remarks}
        for note in dict.fromkeys(notes.values()):
            print(f"  {first_and_number([name for name in notes if notes[name] == note])}: {note}")
    if stages:
        print("\n".join(["where the time went:", *stages.lines()]))
    print(f"peak memory {budget.size_text(budget.peak_bytes())} (predicted {budget.size_text(plan.total)})")


def with_options(
    recipes: list[Any], tensor_type: list[str], output_type: str, embedding_type: str, imatrix: list[Path]
) -> list[WalkedRecipe]:
    """The recipes of GGUF files with types and importance as these options say.

    Raises:
        UserError: no such options, or no recipe of a GGUF file to have them.
    """
    from qlab.formats.imatrix import ImatrixFile
    from qlab.recipes import GGUF
    from qlab.support.errors import UserError

    if not (tensor_type or output_type or embedding_type or imatrix):
        return recipes
    if not any(isinstance(recipe, GGUF) for recipe in recipes):
        raise UserError(
            "--tensor-type, --output-type, --embedding-type and --imatrix are for GGUF files: give a recipe of one, such as --recipe q4_k_m"
        )
    types = []
    for each in tensor_type:
        pattern, equals, kind = each.rpartition("=")
        if not equals or not pattern or not kind:
            raise UserError(f"--tensor-type {each!r}: expected PATTERN=TYPE, such as 'ffn_down=Q6_K'")
        types.append((pattern, kind.upper()))
    files = tuple(ImatrixFile(path) for path in imatrix)

    def chosen(recipe: Any) -> Any:
        if not isinstance(recipe, GGUF):
            return recipe
        if files and recipe.search == "plain":
            raise UserError(f"{recipe.name} goes without importance: leave out --imatrix, or '-plain'")
        typed = replace(recipe, tensor_types=tuple(types), output_type=output_type.upper(), embedding_type=embedding_type.upper())
        return replace(typed, imatrix=files if typed.data_matters else ())

    return [chosen(recipe) for recipe in recipes]


@app.command()
def imatrix(
    out: Annotated[Path, typer.Argument(help="The file to write, such as imatrix.gguf.")],
    model: Annotated[str, typer.Option(help="The model to measure: 'embedded', a folder, or a hub id. Left out, files are merged.")] = "",
    calibration: CalibrationOption = ["docstrings"],  # noqa: B006 - the option parser copies it
    windows: Annotated[int, whole("Calibration windows.", 1, WINDOWS)] = 128,
    length: Annotated[int, whole("Tokens a window.", 2, TOKENS)] = 512,
    merge: Annotated[list[Path], typer.Option(help="An importance file to add, GGUF or .dat. May be repeated.")] = [],  # noqa: B006
    device: DeviceOption = "auto",
) -> None:
    """Measure how much each layer's inputs are used, in llama.cpp's file format (its imatrix), and merge such files."""
    from qlab.formats.imatrix import merged, read_imatrix, write_imatrix
    from qlab.models.loading import load_tokenizer
    from qlab.models.opening import check_length, found_device, locate
    from qlab.models.texts.mixture import check_texts
    from qlab.models.texts.tokens import embedding_rows
    from qlab.models.texts.windows import read_windows
    from qlab.recipes.importance import measure
    from qlab.support.errors import UserError
    from qlab.workbook.lesson import quiet

    quiet()
    if out.exists():
        raise UserError(f"{out} is there already: give another name, or remove it")
    if not out.parent.is_dir():
        raise UserError(f"there is no folder {out.parent} to write {out.name} into")
    if not model and not merge:
        raise UserError("nothing to write: give a --model to measure, files to --merge, or both")
    parts = [(path.name, read_imatrix(path)) for path in merge]
    if model:
        check_texts(calibration)
        source = locate(model)
        check_length(source, length, "--length")
        source.check_complete()
        reading = read_windows(calibration, load_tokenizer(source), length, windows, embedding_rows(source.config))
        print("\n".join(reading.lines("calibration")))
        texts = [one.name for one in reading.read]
        parts.append((source.name, measure(source, reading.windows, texts, out.parent, found_device(device))))
    found = merged(parts)
    write_imatrix(out, found)
    print(f"{out}: importance of {len(found.entries)} tensors, {found.chunks} chunks of {', '.join(found.datasets) or 'unknown texts'}")


@app.command()
def convert(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint in AWQ's, GPTQ's or compressed-tensors' layout, or a GGUF file.")],
    out: Annotated[Path, typer.Option(help="Folder of the new checkpoint.")],
    layout: Annotated[str, typer.Option(help="The layout that is wanted: compressed-tensors, awq or gptq.")] = "",
    parts: Annotated[str, typer.Option(help="For a GGUF file: numbered parts of so many bytes of tensors each, such as 4GB.")] = "",
) -> None:
    """Store the same numbers otherwise: a checkpoint of grouped integers in another layout, or a GGUF file in parts."""
    from qlab.artifacts import budget, converting
    from qlab.models.opening import locate
    from qlab.support.errors import UserError

    if bool(layout) == bool(parts):
        raise UserError("give either --layout, for a checkpoint of grouped integers, or --parts, for a GGUF file")
    source = locate(checkpoint)
    made = converting.in_parts(source, int(budget.parse_bytes(parts)), out) if parts else converting.convert(source, layout, out)
    stored = f"parts of {parts}" if parts else f"the layout {layout}"
    print(f"{made.path}: {made.disk_bytes / 1e6:.1f} MB in {stored}, in {made.seconds:.1f} s")
