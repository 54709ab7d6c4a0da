"""Several GPUs of one machine against one: seconds of whole `qlab quantize` commands on a made-up model of 8B shape, and their bytes.

`python -m tests.bench.devices --blocks 32 --counts 1 2 4`. A first walk over one block, which compiles the kernels, is not counted.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.bench.made_up import make_checkpoint
from tests.bench.quantize import SHAPES

FOUR = ["awq-w4g128", "gptq-w4g128", "nf4", "q4_k_m"]


def quantize(model: Path, out: Path, recipes: list[str], options: argparse.Namespace, count: int) -> float:
    """Seconds that the command takes on the first `count` GPUs."""
    devices = ",".join(f"{options.device}:{index}" if options.device == "cuda" else options.device for index in range(count))
    command = [sys.executable, "-m", "qlab", "quantize", "--model", str(model), "--out", str(out), "--devices", devices]
    command += ["--windows", str(options.windows), "--length", str(options.length)]
    started = time.perf_counter()
    done = subprocess.run([*command, *(word for name in recipes for word in ("--recipe", name))], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"on {devices}: {done.stdout}{done.stderr}")
    return time.perf_counter() - started


def hashes(out: Path) -> dict[str, str]:
    """Every file of the artifacts but what they cost."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name != "qlab-cost.json"]
    return {str(path.relative_to(out)): hashlib.file_digest(path.open("rb"), "sha256").hexdigest() for path in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=SHAPES, default="8B")
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    options = parser.parse_args()
    cards = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    print(f"{options.shape} shape, {options.blocks} blocks, {options.windows} × {options.length} calibration tokens, {cards}", flush=True)
    with tempfile.TemporaryDirectory(prefix="qlab-bench-") as work:
        folder = Path(work)
        small, model = (make_checkpoint(folder / f"made-up-{count}", count, **SHAPES[options.shape][0]) for count in (1, options.blocks))
        for recipes in (["gptq-w4g128"], FOUR):
            quantize(small, folder / f"warm-{len(recipes)}", recipes, options, 1)
            one, first = 0.0, dict[str, str]()
            for count in options.counts:
                seconds = quantize(model, folder / f"{len(recipes)}-{count}", recipes, options, count)
                found = hashes(folder / f"{len(recipes)}-{count}")
                one, first = one or seconds, first or found
                shutil.rmtree(folder / f"{len(recipes)}-{count}")
                same = f"{sum(first.get(name) == value for name, value in found.items())} of {len(first)} files the same"
                print(
                    f"{'+'.join(recipes)} on {count}: {seconds:.1f} s, {one / seconds:.2f}×; {same} of {len(first)} files the same",
                    flush=True,
                )


if __name__ == "__main__":
    main()
