"""`qlab plan`: whether a model fits, on what, and how fast it can be at best."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Annotated

import typer

from qlab.cli.app import app
from qlab.cli.numbers import whole
from qlab.cli.words import show, table


@app.command()
def plan(
    model: Annotated[
        str, typer.Argument(help="Llama-3.1-70B, a size such as 70B, 'embedded', a folder, .gguf file, config.json or hub id.")
    ],
    format_name: Annotated[
        str | None,
        typer.Option("--format", help="fp16, awq, gptq, int8, w8a8, fp8, int3, nf4, q4_k_m, …; else as its files are quantized, or awq."),
    ] = None,
    context: Annotated[int, whole("Tokens a sequence, prompt and answer.", 1, 10**8)] = 4096,
    sequences: Annotated[int, whole("Sequences served at once.", 1, 10**6)] = 1,
    cache: Annotated[str, typer.Option(help="What the KV cache is kept in: f16, q8_0, q4_0 or fp8.")] = "f16",
    gpu: Annotated[str, typer.Option(help="A device of data/hardware.yaml, such as 'RTX 4090' or 'A100 80GB SXM'.")] = "RTX 4090",
    count: Annotated[int, whole("How many of it.", 1, 10**5)] = 1,
    offload: Annotated[bool, typer.Option("--offload", help="Also: layers that do not fit stay on the CPU (llama.cpp).")] = False,
    cpu: Annotated[str, typer.Option(help="The CPU for --offload, of data/hardware.yaml.")] = "desktop-ddr5-5600",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Count the memory of a deployment: weights, cache, what fits, tensor parallelism, the ceiling on tokens/s. Loads no model."""
    from qlab.plan import capacity
    from qlab.plan.plan import CACHES, STORED, check_cache
    from qlab.plan.shapes import find_device, find_shape
    from qlab.plan.stored import as_stored
    from qlab.recipes.planned import planned

    name, shape = find_shape(model)
    check_cache(cache)
    shape = replace(shape, cache_bits=CACHES[cache])
    device = find_device(gpu)
    if format_name is None and (stored := as_stored(model, shape)):
        shape, described = stored
        chosen, called, recipe = STORED, f"{name} as it is stored ({described})", ""
        remarks: tuple[str, ...] = ()
    else:
        chosen, recipe, remarks = planned("awq" if format_name is None else format_name, shape)
        called = f"{name} in {chosen}"
    found = capacity.capacity(shape, chosen, context, sequences, device, count)
    processor = find_device(cpu, ("cpu",)) if offload else None
    split = capacity.offload(shape, chosen, context, sequences, device, count, processor) if processor else None
    if as_json:
        asked = {"model": name, "format": chosen, "context": context, "sequences": sequences, "cache": cache}
        asked |= {"device": device["name"], "count": count, "recipe": recipe}
        print(json.dumps(asked | asdict(found) | {"offload": asdict(split) if split else None}))
        return
    rows = {"linear layers": found.linear, "embedding, head": found.embedding, "KV cache": found.cache, "needed": found.needed}
    rows |= {"usable": found.usable, "FP16 weights": found.fp16_weights}
    print(called)
    unit, scale, digits = ("GB", 1, 2) if found.needed >= 1 else ("MB", 1000, 0)
    show(table(("", unit), [(label, f"{scale * size:,.{digits}f}") for label, size in rows.items()]))
    for sentence in capacity.sentences(found, shape, chosen, context, sequences, device, count):
        print(sentence)
    if split and processor:
        print(
            f"Offload (n_gpu_layers {split.layers}): {split.layers} of {split.of} layers on the devices ({split.on_devices:.1f} GB), "
            f"{split.on_cpu:.1f} GB on {processor['name']}"
            + (f" ({split.twice:.1f} of them a second time, packed for its kernels)" if split.twice else "")
            + f", which {'holds' if split.cpu_holds else 'does not hold'} them; "
            f"at most {split.ceiling:,.1f} tokens/s in all."
        )
    for remark in remarks:
        print(remark)
    if recipe:
        print(f"To make it: qlab quantize --recipe {recipe}")
