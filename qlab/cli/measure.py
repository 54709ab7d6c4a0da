"""`qlab evaluate`: the quality of any model or artifact."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from qlab.cli.app import DeviceOption, app
from qlab.cli.bench import StoreOption, keep, subject_of
from qlab.cli.numbers import TOKENS, whole
from qlab.support.errors import UserError

if TYPE_CHECKING:
    from qlab.evaluate.quality import Quality


def spread(quality: Quality) -> str:
    """How the distance is spread over single tokens, in words."""
    parts = {"median": quality.kl_median, "p90": quality.kl_p90, "p99": quality.kl_p99, "largest": quality.kl_max}
    said = ", ".join(f"{name} {value:.2g}" for name, value in parts.items())
    if quality.flips_sure is None:
        return said
    return f"{said}; where the original was sure (50 % or more), another top token on {quality.flips_sure:.1%}"


def parted(quality: Quality) -> list[str]:
    """The distance by place in the window, and by how sure the original is, in words."""

    def row(values: list[float | None] | None, form: str) -> str:
        return " ".join("-" if value is None else format(value, form) for value in values or [])

    return [
        f"by place, a quarter of a window each: KL {row(quality.kl_by_place, '.2g')}",
        f"by the original's top probability (below 25 %, 50 %, 75 %, above): KL {row(quality.kl_by_confidence, '.2g')}; another top token "
        f"on {row(quality.flips_by_confidence, '.1%')}",
    ]


@app.command()
def evaluate(
    path: Annotated[str, typer.Argument(help="A model or artifact: 'embedded', a folder, a .gguf file, a hub id.")],
    text: Annotated[
        list[str], typer.Option(help="python-reference, docstrings, prompts, or a file of UTF-8 text or JSON lines. May be repeated.")
    ] = ["python-reference"],  # noqa: B006 - the option parser copies it
    window: Annotated[int, whole("Tokens a window; windows do not overlap. GPTQ's protocol: 2048 of wikitext-2.", 2, TOKENS)] = 512,
    tokens: Annotated[int, whole("Tokens to read, at most.", 2, 10**9)] = 20480,
    reference: Annotated[str | None, typer.Option(help="Also the distance from this model.")] = None,
    floor: Annotated[
        bool, typer.Option("--floor/--no-floor", help="With --reference also its own distance from itself when computed in BF16.")
    ] = True,
    tasks: Annotated[str, typer.Option(help="lm-eval's tasks, such as mmlu,hellaswag,lambada, and heldout-cloze, made of --text.")] = "",
    limit: Annotated[int | None, whole("Documents a task, at most (mmlu: a subject).", 1, 10**6)] = None,
    task_data: Annotated[Path | None, typer.Option(help="Folder with mmlu/, hellaswag/, lambada/; else the hub.")] = None,
    agreement: Annotated[bool, typer.Option(help="Also agreement with --reference over the prompts, by language and kind.")] = False,
    prompts: Annotated[Path | None, typer.Option(help="JSONL with a 'prompt' a line; else the 500 of this workbook.")] = None,
    cache: Annotated[
        str, typer.Option(help="Keys and values rounded as a KV cache keeps them: f16 (not at all), q8_0, q4_0 (llama.cpp) or fp8 (vLLM).")
    ] = "f16",
    device: DeviceOption = "auto",
    results: StoreOption = "build/results.sqlite",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line.")] = False,
) -> None:
    """Token perplexity of a model or artifact; with --reference the distance from it, with --tasks lm-eval's scores."""
    import torch
    from transformers import PreTrainedModel

    from qlab.artifacts.manifest import made_from
    from qlab.evaluate.agreement import agreement_table, answer_prompts, part
    from qlab.evaluate.arithmetic import FLOOR, caching, floor_of
    from qlab.evaluate.quality import measure_each
    from qlab.evaluate.store.results import Figure, quality_figures, score_figures
    from qlab.evaluate.tasks import Score, changed, check_tasks, run_tasks
    from qlab.models.loading import load_tokenizer
    from qlab.models.opening import check_length, found_device, left_out, locate
    from qlab.models.texts.builtin import fingerprint
    from qlab.models.texts.mixture import load_text
    from qlab.models.texts.prompts import load_prompts
    from qlab.models.texts.tokens import embedding_rows
    from qlab.models.texts.windows import read_windows
    from qlab.plan.plan import check_cache
    from qlab.walk.by_block import predictor
    from qlab.workbook.lesson import quiet

    quiet()
    device = found_device(device)
    check_cache(cache)
    if agreement and not reference:
        raise UserError("agreement with what? Give --reference MODEL")
    source = locate(path)
    subject, artifact = subject_of(source), made_from(source.path)
    check_length(source, window, "--window")
    original = locate(reference) if reference else None
    tokenizer = load_tokenizer(original or source)
    rows = [known for one in (source, original) if one and (known := embedding_rows(one.config)) is not None]
    reading = read_windows(text, tokenizer, window, max(1, tokens // window), min(rows, default=None))
    asked = load_prompts(prompts) if agreement else []
    wanted = [name.strip() for name in tasks.split(",")] if tasks else []
    check_tasks(wanted, limit, task_data, task_text := load_text(text) if wanted else "")
    in_memory = bool(wanted) or agreement or cache != "f16"  # they write answers, read texts of other lengths, or change the model
    model, rest = predictor(source, reading.windows, device, whole=in_memory)
    judge, rest_of_judge = predictor(original, reading.windows, device, whole=agreement) if original else (None, [])
    floors_of = [floor_of(original, judge, reading.windows, device)] if original and judge and floor else []
    with caching(cache)(model) if isinstance(model, PreTrainedModel) else nullcontext():
        quality, *floors = measure_each([model, *floors_of], reading.windows, judge)
        under = {"dtype": "float32", "device": torch.device(device).type} | ({} if cache == "f16" else {"cache": cache})
        measured_from = f"{original.name} {original.fingerprint[:8]}" if original else ""
        figures = quality_figures(quality, reading.conditions | under, measured_from)
        told = {name: value for name, value in quality.as_dict().items() if name != "kl_windows"}
        found: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
        for each in floors:
            found["floor"] = {"kl": each.kl, "kl_stderr": each.kl_stderr, "top1": each.top1}
        found |= {"text": reading.as_dicts(), "protocol": reading.protocol, "made_from": artifact}
        found["bytes"] = sum(file.stat().st_size for file in source.files)
        found |= {"left_out": rest} if rest else {}
        if not as_json:
            beside = [left_out(one, names) for one, names in ((source, rest), (original, rest_of_judge)) if one and names]
            print("\n".join([*beside, *reading.lines("text")]))
            print(f"perplexity {quality.perplexity:.3f} ± {quality.stderr:.3f}  ({quality.tokens:,} tokens, windows of {quality.window})")
            if quality.kl is not None:
                print(f"KL to {reference} {quality.kl:.5f} ± {quality.kl_stderr:.5f} nats/token; same top token {quality.top1:.1%}")
                print(f"  of single tokens: {spread(quality)}", *parted(quality), sep="\n  ")
            for each in floors:
                print(f"  noise floor, the {FLOOR}: KL {each.kl:.5f} ± {each.kl_stderr:.5f}; same top token {each.top1:.1%}")
        if agreement and isinstance(judge, PreTrainedModel) and isinstance(model, PreTrainedModel):
            answered = answer_prompts(judge, tokenizer, asked)
            table = agreement_table(part(model, judge, answered))
            found["agreement"] = table.to_dict("records")
            whole = table.iloc[0]
            over = {"prompts": len(answered), "sha256": fingerprint(json.dumps(asked))[:8], "reference": measured_from} | under
            figures += [Figure(f"agreement {of}", whole[of], whole[f"{of}_stderr"], "share", over) for of in ("top1", "identical")]
            if not as_json:
                print(table.to_string(index=False, float_format=lambda value: f"{value:.4f}"))
        problem = None
        scores, theirs = list[Score](), list[Score]()
        try:
            scores = run_tasks(cast(PreTrainedModel, model), tokenizer, wanted, limit, task_data, task_text) if wanted else []
            held = bool(wanted) and isinstance(judge, PreTrainedModel)  # a larger reference is never whole in memory for this alone
            theirs = run_tasks(cast(PreTrainedModel, judge), tokenizer, wanted, limit, task_data, task_text) if held else []
        except UserError as error:  # the hub's data, of which nothing is known before: what is measured is kept
            problem = error
        figures += score_figures(scores, under, reading.conditions)
        originals = {(score.task, score.metric): score for score in theirs}
        found |= {"tasks": []} if wanted else {}
        for score in scores:
            one = originals.get((score.task, score.metric))
            other = changed(score, one) if one else None
            theirs_beside = {} if one is None else {"original": one.value}
            theirs_beside |= {} if other is None else {"changed": other[0], "changed_stderr": other[1]}
            found["tasks"].append({name: value for name, value in asdict(score).items() if name != "answers"} | theirs_beside)
            if other:
                over = {"documents": score.documents, "reference": measured_from} | under
                figures.append(Figure(f"{score.task} answers changed", *other, "share", over))
            if not as_json:
                said = f"{score.task} {score.metric} {score.value:.4f} ± {score.stderr:.4f}  ({score.documents} documents)"
                said += f"; the original {one.value:.4f}" if one else ""
                print(said + (f"; another answer than its on {other[0]:.1%} ± {other[1]:.1%}" if other else ""))
    keep(results, path, [(subject, figures)])
    if as_json:
        print(json.dumps(found))
    if problem:
        raise problem
