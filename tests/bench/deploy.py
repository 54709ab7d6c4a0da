"""A deployment from end to end, in each runtime that is here: proof, load, memory, and vLLM's own load tool beside ours.

`make bench-deploy`. Each server is proved, carries all prompts of data/prompts.jsonl at every concurrency, and is stopped; the memory
that it holds is printed. `vllm bench serve` then asks the same server as much, in prompts of its own: its figures must be near ours.
Nothing here is a test.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from qlab.artifacts.artifact import quantize_model
from qlab.models.loading import load_tokenizer
from qlab.models.opening import locate
from qlab.models.texts.prompts import load_prompts
from qlab.models.texts.windows import read_windows
from qlab.recipes import parse
from qlab.serve.deployment import Deployment
from qlab.serve.load import Level, run_load
from qlab.serve.proof import prove
from qlab.serve.runtimes.registry import RUNTIMES
from qlab.serve.runtimes.vllm import QUIET, program
from qlab.serve.server import Server, on_free_port, serving
from qlab.workbook.lesson import quiet

SERVED = {"llamacpp": ("q4_k_m",), "vllm": ("awq-w4g128", "gptq-w4g128")}

# `vllm bench serve` itself asks for the version of a package named vllm, which the CPU build is not.
BENCH = "from argparse import *; from vllm.benchmarks.serve import *; p = ArgumentParser(); add_cli_args(p); main(p.parse_args())"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--concurrency", nargs="*", type=int, default=[1, 4, 16])
    o = parser.parse_args()
    quiet()
    texts = [entry["prompt"] for entry in load_prompts()]
    table = Table("artifact", "runtime", "at a time", "tok/s", "TTFT p50/p99 ms", "TPOT p50/p99 ms", "lost", "changed", "wrong")
    source = locate(o.model)
    calibration = read_windows("docstrings", load_tokenizer(source), 256, 32).windows
    with tempfile.TemporaryDirectory(prefix="qlab-bench-") as work:
        names = [name for served in SERVED.values() for name in served]
        made = {made.path.name: made.path for made in quantize_model(source, [parse(name) for name in names], calibration, Path(work))}
        for runtime_name, served in SERVED.items():
            runtime = RUNTIMES[runtime_name]
            if not runtime.present():
                print(f"{runtime.label} is not on this machine: {runtime.install}")
                continue
            for name in served:
                deployment = on_free_port(made[name], 1024, max(o.concurrency), threads=torch.get_num_threads())
                with serving(runtime, deployment) as server:
                    proof = prove(runtime, deployment, server)
                    print(f"{name} in {runtime.label}: {'proved' if proof.holds else 'NOT PROVED'}, {proof.agreement}", flush=True)
                    for level in run_load(server.url, server.model, texts, o.concurrency, o.tokens):
                        table.add_row(name, runtime.label, *ours(level))
                    print(f"  it holds {server.held_bytes() / 1e6:.0f} MB", flush=True)
                    if program():
                        table.add_row(name, f"{runtime.label}, by vllm bench", *theirs(server, deployment, texts, o.tokens, Path(work)))
    Console(width=140).print(table)


def ours(level: Level) -> list[str]:
    """A row of our own figures."""
    times = [f"{1000 * part['p50']:.1f} / {1000 * part['p99']:.1f}" for part in (level.ttft, level.tpot)]
    return [
        str(level.concurrency),
        f"{level.output_throughput:.0f}",
        *times,
        str(sum(level.errors.values())),
        str(level.changed),
        str(level.wrong),
    ]


def theirs(server: Server, deployment: Deployment, texts: list[str], tokens: int, work: Path) -> list[str]:
    """A row by `vllm bench serve`: as many prompts of their mean length, as many at a time as the server takes."""
    tokenizer = load_tokenizer(locate(str(deployment.folder)))
    length = round(statistics.mean(len(tokenizer.encode(text)) for text in texts))
    python = (program() or [""])[0]
    command = [python, "-c", BENCH, "--base-url", server.url, "--model", server.model, "--tokenizer", str(deployment.folder)]
    command += ["--dataset-name", "random", "--random-input-len", str(length), "--random-output-len", str(tokens)]
    command += ["--num-prompts", str(len(texts)), "--max-concurrency", str(deployment.sequences)]
    command += [
        "--ignore-eos",
        "--temperature",
        "0",
        "--disable-shuffle",
        "--percentile-metrics",
        "ttft,tpot",
        "--metric-percentiles",
        "50,99",
    ]
    command += ["--save-result", "--result-dir", str(work), "--result-filename", "bench.json", "--disable-tqdm"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "HOME": str(work)} | QUIET, check=False)
    if done.returncode:
        return ["-", f"failed: {done.stderr.strip().splitlines()[-1:]}", "", "", "", "", ""]
    found = json.loads((work / "bench.json").read_text())
    times = [f"{found[f'p50_{name}_ms']:.1f} / {found[f'p99_{name}_ms']:.1f}" for name in ("ttft", "tpot")]
    return [str(deployment.sequences), f"{found['output_throughput']:.0f}", *times, str(len(texts) - found["completed"]), "-", "-"]


if __name__ == "__main__":
    main()
