"""qlab's recipes against the libraries that they replace, in one run on one machine (`make bench-quantize`).

Prints quality (KL divergence to FP16 on held-out text), seconds, memory, the ratios that the project is judged by, and the
floor: one forward pass over the calibration text. Nothing here is a test: machines are noisy, and a ratio is read by people.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from qlab.artifacts.artifact import Artifact, make_artifact, quantize_model
from qlab.evaluate.quality import Quality, measure_quality
from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import OpenedModel, locate
from qlab.models.plain_copy import plain_copy
from qlab.models.texts.windows import read_windows
from qlab.peers.recipes import AutoAWQ, AutoGPTQ, AutoRound, BitsAndBytes, LlamaCpp, LLMCompressor
from qlab.recipes import Recipe, parse
from qlab.support.processes.process import run_isolated
from qlab.workbook.lesson import able, quiet
from tests.bench.kquants import against_llamacpp
from tests.bench.large import LARGE, SHAPES, large
from tests.bench.made_up import make_checkpoint
from tests.bench.rows import change

OWN = [
    "rtn-w4g128",
    "awq-w4g128",
    "gptq-w4g128-inorder-cover",
    "gptq-w4g128-inorder-cover-sequential",
    "gptq-w4g128",
    "gptq-w4g128-sequential",
    "gptq-w4g128-asym",
    "gptq-w4g128-asym-sequential",
    "gptq-w4g128-asym-actorder",
    "gptq-w3g128-asym",
    "gptq-w3g128-asym-sequential",
    "awq-gptq-w4g128",
    "nf4",
    "q4_k_m",
    "q4_k_m-importance",
    "q4_k_m-plain",
    "smooth-gptq-w8a8",
]
LIBRARIES: list[Recipe] = [
    AutoAWQ(),
    AutoGPTQ(),
    AutoGPTQ(symmetric=False, act_order=True),
    AutoGPTQ(bits=3, symmetric=False, act_order=True),
    BitsAndBytes(),
    LlamaCpp(),
    LlamaCpp(search="importance"),
    LLMCompressor(),
    LLMCompressor(bits=8, smooth=True),
]
PARTS = ["quality", "blocks", "memory", "resume", "large"]
# Get more calibration text: as much as fits in the time that AutoAWQ takes.
TUNED: list[Recipe] = [AutoRound(), parse("tuned-w4g128"), parse("tuned-w3g128")]
RATIOS = [
    ("awq-w4g128", "autoawq-w4g128"),
    ("gptq-w4g128-inorder-cover", "autogptq-w4g128"),
    ("gptq-w4g128", "autogptq-w4g128"),
    ("gptq-w4g128-inorder-cover-sequential", "autogptq-w4g128"),
    ("gptq-w4g128-asym-actorder", "autogptq-w4g128-asym-actorder"),
    ("gptq-w3g128-asym", "autogptq-w3g128-asym-actorder"),
    ("gptq-w4g128", "llmcompressor-gptq-w4g128"),
    ("smooth-gptq-w8a8", "llmcompressor-smooth-gptq-w8a8"),
    ("tuned-w4g128", "autoround-w4g128"),
    ("tuned-w4g128", "autogptq-w4g128-asym-actorder"),
    ("tuned-w3g128", "autogptq-w3g128-asym-actorder"),
    ("q4_k_m-importance", "llamacpp-q4_k_m-importance"),
    ("q4_k_m-plain", "llamacpp-q4_k_m"),
]
IN_PAIRS = [
    ("q4_k_m", "llamacpp-q4_k_m"),
    ("q4_k_m", "llamacpp-q4_k_m-importance"),
    ("gptq-w4g128-inorder-cover", "autogptq-w4g128"),
    ("gptq-w4g128", "autogptq-w4g128"),
    ("gptq-w4g128", "llmcompressor-gptq-w4g128"),
    ("smooth-gptq-w8a8", "llmcompressor-smooth-gptq-w8a8"),
    ("tuned-w4g128", "autoround-w4g128"),
    *((f"{name}-sequential", name) for name in ("gptq-w4g128", "gptq-w4g128-asym", "gptq-w3g128-asym")),
]


def quality_and_time(options: argparse.Namespace, work: str) -> None:
    source = locate(options.model)
    if source.checkpoint.quantized:
        source = plain_copy(source, Path(work) / "plain")
    tokenizer, original = load_tokenizer(source), load(source)
    calibration = read_windows(options.calibration, tokenizer, 256, 64).windows
    held_out = read_windows(options.text, tokenizer, 512, 40).windows
    original(calibration[:8], use_cache=False)
    started = time.perf_counter()
    with torch.inference_mode():
        for part in calibration.split(8):
            original(part, use_cache=False)
    floor = time.perf_counter() - started
    print(f"{source.name}: {calibration.numel()} calibration tokens; one forward pass over them, the floor: {floor:.1f} s")
    found: dict[str, tuple[Artifact, Quality]] = {}
    jobs = [(recipe, calibration) for recipe in [*LIBRARIES, *map(parse, OWN)]]
    if options.tuning_windows:
        more = read_windows(options.calibration, tokenizer, 256, options.tuning_windows).windows
        jobs += [(recipe, more) for recipe in TUNED]
    for recipe, seen in able({recipe.name: (recipe, seen) for recipe, seen in jobs}, lambda job: job[0].check(source)).values():
        made = make_artifact(recipe, source, seen, work)
        found[recipe.name] = made, measure_quality(load(made.source), held_out, original)
        q = found[recipe.name][1]
        print(
            f"{recipe.name:32} {made.seconds:7.1f} s {made.seconds / floor:6.1f} floors {made.peak_bytes / 1e9:5.2f} GB"
            f"  KL {q.kl:.5f} ± {q.kl_stderr:.5f}  same top token {q.top1:.1%}  perplexity {q.perplexity:.2f}",
            flush=True,
        )

    def ratio(first: str, second: str) -> str:
        (a, qa), (b, qb) = found[first], found[second]
        return f"{first} against {second}: KL {(qa.kl or 0) / (qb.kl or 1):.2f}×, {b.seconds / a.seconds:.1f}× as fast"

    def in_pairs(first: str, second: str) -> str:
        return f"{first} against {second}, window by window: KL {change(found[first][1], found[second][1])}"

    for first, second in RATIOS:
        if first in found and second in found:
            print(ratio(first, second))
    for first, second in IN_PAIRS:
        if first in found and second in found:
            print(in_pairs(first, second))
    if "tuned-w4g128" in found and "autoawq-w4g128" in found:
        print(f"tuned-w4g128 took {found['tuned-w4g128'][0].seconds / found['autoawq-w4g128'][0].seconds:.2f} of AutoAWQ's time")
    four = ["awq-w4g128", "gptq-w4g128", "nf4", "q4_k_m"]
    slowest = max(four, key=lambda name: found[name][0].seconds)
    together, alone = [], []
    for turn in range(5):
        for names, seconds in ((four, together), ([slowest], alone))[:: 1 if turn % 2 else -1]:
            seconds.append(run_isolated(at_once, source, calibration, names).seconds)
    ratios = sorted(a / b for a, b in zip(together, alone, strict=True))
    print(
        f"four formats from one walk: {statistics.median(together):.1f} s, {statistics.median(ratios):.2f}× {slowest} alone "
        f"(medians of five turns, {ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def at_once(source: OpenedModel, calibration: torch.Tensor, names: list[str]) -> None:
    """One walk for all the names."""
    with tempfile.TemporaryDirectory(prefix="qlab-bench-") as out:
        quantize_model(source, [parse(name) for name in names], calibration, Path(out))


def memory(work: Path) -> None:
    """Peak memory of a walk over 8 and over 32 equal blocks, as predicted and as measured, by the command line."""
    peaks = []
    for layers in (8, 32):
        model = make_checkpoint(work / f"made-up-{layers}", layers, hidden=2048, mlp=5632, heads=16, kv_heads=4)
        command = [sys.executable, "-m", "qlab", "quantize", "--model", str(model), "--out", str(work / f"out-{layers}")]
        # Without going over the codes again, which takes long at this size and less memory than factoring H.
        command += ["--recipe", "gptq-w4g128-cover", "--windows", "4", "--length", "256", "--max-memory", "2GB"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peaks.append(float(printed.split("peak memory ")[1].split(" GB")[0]))
        size = sum(file.stat().st_size for file in model.glob("*.safetensors")) / 1e9
        print(f"{layers} blocks, {size:.2f} GB of weights, limit 2 GB: {printed.strip().splitlines()[-1]}", flush=True)
    print(f"32 blocks against 8: {peaks[1] / peaks[0]:.3f}× the memory")


def resume(work: Path, kills: int) -> None:
    """Kill a walk at random moments and compare its bytes with those of a calm one."""
    command = [sys.executable, "-m", "qlab", "quantize", "--windows", "64", "--length", "256"]
    command += [word for name in ("awq-w4g128", "gptq-w4g128-sequential", "nf4", "q4_k_m") for word in ("--recipe", name)]
    started = time.perf_counter()
    subprocess.run([*command, "--out", str(work / "calm")], check=True, capture_output=True)
    whole, chance = time.perf_counter() - started, random.Random(0)
    for _ in range(kills):
        process = subprocess.Popen([*command, "--out", str(work / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.2, 0.9) * whole)
        process.kill()
        process.wait()
    subprocess.run([*command, "--out", str(work / "killed")], check=True, capture_output=True)
    files = [path.relative_to(work / "calm") for path in (work / "calm").rglob("*") if path.is_file() and path.name != "qlab-cost.json"]
    same = [(work / "calm" / file).read_bytes() == (work / "killed" / file).read_bytes() for file in files]
    print(f"killed {kills} times at random moments: {sum(same)} of {len(same)} files equal an undisturbed run's")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--calibration", default="docstrings")
    parser.add_argument("--text", default="python-reference", help="held-out text to judge by")
    parser.add_argument(
        "--tuning-windows",
        type=int,
        default=640,
        help="calibration windows of the tuned recipes, 0: leave them out; all others get 64 of 256 tokens",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[:4], help="'large': the shape of 8B or 70B")
    parser.add_argument("--device", default="cpu", help="of the part 'large'")
    parser.add_argument("--large-windows", type=int, default=128, help="calibration windows of the part 'large'")
    parser.add_argument("--large-length", type=int, default=512, help="their tokens")
    parser.add_argument("--large-blocks", type=int, help="blocks of the larger of its two models; else 9, or 3 of 70B")
    parser.add_argument("--recipes", nargs="+", default=LARGE, help="of the part 'large'; those that + joins are made in one walk")
    parser.add_argument("--shape", choices=SHAPES, default="8B", help="of the part 'large'")
    parser.add_argument("--profile", action="store_true", help="print where the time of the part 'large' went")
    options = parser.parse_args()
    if options.large_blocks is not None and options.large_blocks < 2:
        parser.error(f"--large-blocks is {options.large_blocks}: expected 2 or more, since one block is walked over before")
    quiet()
    with tempfile.TemporaryDirectory(prefix="qlab-bench-") as work:
        if "quality" in options.parts:
            quality_and_time(options, work)
        if "blocks" in options.parts:
            against_llamacpp()
        if "memory" in options.parts:
            memory(Path(work))
        if "resume" in options.parts:
            resume(Path(work), kills=10)
        if "large" in options.parts:
            large(Path(work), options)


if __name__ == "__main__":
    main()
