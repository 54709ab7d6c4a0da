"""`qlab serve`: an artifact as a server that has proved itself, or the files with which others serve it. `qlab load`: what a server does
when many ask at once."""

from __future__ import annotations

import json
import shlex
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from qlab.cli.app import app, console, interrupt, refuse
from qlab.cli.numbers import AT_A_TIME, LISTED, TOKENS, numbers_in, real, whole
from qlab.cli.words import failures, readable, show, table
from qlab.support.errors import UserError

if TYPE_CHECKING:
    from qlab.serve.load import Level
    from qlab.serve.proof import Check

COLUMNS = (
    "at a time", "TTFT p50 / p99 (ms)", "TPOT p50 / p99 (ms)", "ITL p99 (ms)", "requests/s", "output tok/s", "lost", "changed", "wrong",
)  # fmt: skip
PromptsOption = Annotated[Path | None, typer.Option(help="JSONL with a 'prompt' a line; else the 500 of this workbook.")]


@app.command()
def serve(
    command: typer.Context,
    path: Annotated[Path, typer.Argument(help="A model or artifact folder.")],
    runtime: Annotated[str | None, typer.Option(help="llamacpp, vllm, tgi or ollama; else the first here that serves the format.")] = None,
    name: Annotated[str | None, typer.Option(help="What clients ask for; else the folder's name.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; other machines reach it only if this is not loopback.")] = "127.0.0.1",
    port: Annotated[int, whole("Port to listen on; 0 takes a free one.", 0, 65535)] = 8000,
    context: Annotated[int, whole("Tokens of prompt and answer together.", 16, TOKENS)] = 4096,
    sequences: Annotated[int, whole("Requests answered at a time.", 1, 10_000)] = 4,
    gpus: Annotated[int, whole("GPUs to spread the model over; 0 serves on the CPU.", 0, 1024)] = 0,
    gpu_layers: Annotated[int | None, whole("Layers of a GGUF file on the GPUs, the rest on the CPU; else all.", 0, 10_000)] = None,
    threads: Annotated[int, whole("CPU threads.", 1, 4096)] = 2,
    cache: Annotated[str, typer.Option(help="What the KV cache is kept in: f16, q8_0 or q4_0 (llama.cpp, Ollama), fp8 (vLLM).")] = "f16",
    api_key_file: Annotated[Path | None, typer.Option(help="File with the key that clients must give; wanted beyond loopback.")] = None,
    log: Annotated[Path | None, typer.Option(help="Append the server's log to this file.")] = None,
    prove: Annotated[bool, typer.Option(help="First check that the server's answers are the artifact's.")] = True,
    load: Annotated[str, typer.Option(help="Then send prompts at these concurrencies, as qlab load does, and stop.")] = "",
    tokens: Annotated[int, whole("Tokens of an answer to --load.", 1, 100_000)] = 16,
    prompts: PromptsOption = None,
    dry_run: Annotated[bool, typer.Option(help="Only print the command.")] = False,
    write: Annotated[Path | None, typer.Option(metavar="DIR", help="Only write Compose, Kubernetes and Ollama files.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The proof, and the load, as one JSON object; then stop.")] = False,
) -> None:
    """Serve an artifact, prove that the server is the model that was measured, and stay until Ctrl-C."""
    from qlab.artifacts.artifact import Artifact
    from qlab.models.locating import kind_of
    from qlab.models.opening import locate
    from qlab.serve.deployment import Deployment, read_key
    from qlab.serve.files import write_files
    from qlab.serve.load import run_load
    from qlab.serve.proof import prove as prove_server
    from qlab.serve.runtimes.registry import runtime_for, runtime_named
    from qlab.serve.runtimes.runtime import expected_memory
    from qlab.serve.server import free_port, serving
    from qlab.workbook.lesson import quiet

    if dry_run or write:
        refuse(command, ("--load", "--tokens", "--prompts"), "needs a server, and --dry-run and --write start none: leave it out")
    if not load:
        refuse(command, ("--tokens", "--prompts"), "needs --load, such as --load 1,4,16: it says what is sent then, or leave it out")
    quiet()
    wanted = numbers_in(load, "--load", AT_A_TIME) if load else []
    texts = prompts_in(prompts) if wanted else []
    folder = locate(str(path)).path
    kind = kind_of(folder)
    chosen = runtime_named(runtime) if runtime else runtime_for(kind)
    key = read_key(api_key_file) if api_key_file else None
    listens = port or free_port()
    deployment = Deployment(folder, name or folder.name, context, sequences, host, listens, gpus, threads, gpu_layers, cache, key=key)
    if (made := Artifact.open(folder)) and (remark := made.manifest["notes"].get("sliding window")):
        console.print(remark, markup=False, highlight=False)
    if dry_run:
        words = [f"{variable}={value}" for variable, value in chosen.environment(deployment).items() if value != key]
        print(shlex.join(["env", *words, *chosen.command(deployment)]))
        return
    if write:
        for file in write_files(chosen, deployment, write):
            print(file)
        return
    memory = expected_memory(chosen, deployment)
    expected = memory.total if memory else None
    signal.signal(signal.SIGINT, interrupt)  # a shell that starts us in the background has it ignored
    with console.status(f"starting {chosen.label}"), serving(chosen, deployment, log=log) as server:
        found: dict[str, Any] = {}
        if prove:
            console.print(f"{chosen.label} answers at {server.url}; its answers are now checked …", highlight=False)
            proof = prove_server(chosen, deployment, server)
            found = proof.as_dict() | {"memory_bytes": server.held_bytes(), "expected_memory_bytes": expected}
            if not as_json:
                show_checks(proof.checks)
            elif not (wanted and proof.holds):
                print(json.dumps(found))
            if not proof.holds:
                raise UserError("this server is not the model that was measured, or does not answer as it must: not deployed (see above)")
        if wanted:
            levels = run_load(server.url, deployment.name, texts, wanted, tokens, key)
            show_levels(levels, found | {"runtime": chosen.label, "memory_bytes": server.held_bytes()} if as_json else None)
            if said := failures(levels):
                complaint = f"error: {chosen.label}'s server does not answer as it must under load: {'; '.join(said)}"
                console.print(readable(complaint), markup=False, highlight=False)
                raise typer.Exit(1)  # as `qlab load` ends: it was tried, and may be tried again
        if wanted or (as_json and prove):
            return
        print(f"deployed: {server.url}/v1, model {deployment.name}; Ctrl-C stops it", flush=True)
        predicted = f"; {expected / 1e6:.0f} MB predicted" if expected else ""
        print(f"it holds {server.held_bytes() / 1e6:.0f} MB of memory{predicted}", flush=True)
        header = ' -H "Authorization: Bearer $(cat KEYFILE)"' if key else ""
        body = shlex.quote(json.dumps({"model": deployment.name, "prompt": "Return the", "max_tokens": 20}))
        print(f"curl {server.url}/v1/completions -H 'Content-Type: application/json'{header} -d {body}", flush=True)
        while server.alive:
            time.sleep(0.2)
        raise UserError(f"{chosen.label}'s server ended by itself (exit code {server.process.returncode}). Its log ends:\n{server.tail()}")


def show_checks(checks: Sequence[Check]) -> None:
    """The checks of a proof as a table."""
    rows = [(Text("holds", "green") if check.passed else Text("fails", "red"), check.name, check.found) for check in checks]
    show(table(("", "check", "found"), rows))


@app.command()
def load(
    url: Annotated[str, typer.Argument(help="A server with an OpenAI interface, such as http://127.0.0.1:8000.")],
    model: Annotated[str, typer.Option(help="The name under which it serves the model.")],
    concurrency: Annotated[
        str, typer.Option(help=f"Requests at a time, a list: up to {LISTED} numbers from {AT_A_TIME.range}.")
    ] = "1,4,16",
    prompts: PromptsOption = None,
    tokens: Annotated[int, whole("Tokens of an answer.", 1, 100_000)] = 16,
    timeout: Annotated[float, real("Seconds in which an answer must be there, whole.", 0.1, 86_400)] = 60.0,
    api_key_file: Annotated[Path | None, typer.Option(help="File with the server's key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on the last line.")] = False,
) -> None:
    """Send all prompts at rising concurrency: TTFT, TPOT, ITL, throughput, errors, and where the server saturates."""
    from qlab.serve.deployment import read_key
    from qlab.serve.load import run_load

    wanted, texts = numbers_in(concurrency, "--concurrency", AT_A_TIME), prompts_in(prompts)
    levels = run_load(url.rstrip("/"), model, texts, wanted, tokens, read_key(api_key_file) if api_key_file else None, timeout)
    show_levels(levels, {} if as_json else None)
    if failures(levels):
        raise typer.Exit(1)


def prompts_in(file: Path | None) -> list[str]:
    """The prompts of a file, or the workbook's own.

    Raises:
        UserError: it cannot be read.
    """
    from qlab.models.texts.prompts import load_prompts

    return [entry["prompt"] for entry in load_prompts(file)]


def show_levels(levels: Sequence[Level], beside: Mapping[str, Any] | None) -> None:
    """What a server did under load: as a table, or as one JSON object with what stands `beside` it."""
    from qlab.serve.load import saturation

    found = saturation(levels)
    if beside is not None:
        told = {"levels": [asdict(level) for level in levels], "saturation": found}
        print(json.dumps({**beside, "load": told} if beside else told))
        return
    milliseconds = lambda part, *names: " / ".join(f"{1000 * part[name]:.1f}" for name in names) if part else "none"  # noqa: E731
    rows = [
        (
            level.concurrency, milliseconds(level.ttft, "p50", "p99"), milliseconds(level.tpot, "p50", "p99"),
            milliseconds(level.itl, "p99"), f"{level.request_throughput:.1f}", f"{level.output_throughput:.0f}",
            ", ".join(f"{count} {kind}" for kind, count in level.errors.items()) or "0", level.changed, level.wrong,
        )
        for level in levels
    ]  # fmt: skip
    show(table(COLUMNS, rows))
    print(f"throughput stops growing beyond {found} at a time" if found else "throughput still grew at the last level")
