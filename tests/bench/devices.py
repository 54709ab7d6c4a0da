"""Several GPUs of one machine against one: seconds of `qlab quantize` and of a further block on a made-up model, and the bytes.

`python -m tests.bench.devices --blocks 32 --counts 1 2 4`. A first walk, which compiles the kernels, is not counted. A further block is the
difference to a model of a few blocks, so that what it takes to start the processes is left out; all blocks are alike.
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

from qlab.artifacts.manifest import COST
from tests.bench.large import SHAPES
from tests.bench.made_up import make_checkpoint

WALKS = ["gptq-w4g128", "awq-w4g128+gptq-w4g128+nf4+q4_k_m"]


def quantize(model: Path, out: Path, recipes: list[str], options: argparse.Namespace, count: int) -> tuple[float, dict[str, str]]:
    """Seconds that the command takes on the first `count` GPUs, and the hash of every file of the artifacts but what they cost."""
    devices = ",".join(f"{options.device}:{index}" if options.device == "cuda" else options.device for index in range(count))
    command = [sys.executable, "-m", "qlab", "quantize", "--model", str(model), "--out", str(out), "--devices", devices]
    command += ["--windows", str(options.windows), "--length", str(options.length)]
    started = time.perf_counter()
    done = subprocess.run([*command, *(word for name in recipes for word in ("--recipe", name))], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"on {devices}: {done.stdout}{done.stderr}")
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name != COST]
    found = {str(path.relative_to(out)): hashlib.file_digest(path.open("rb"), "sha256").hexdigest() for path in files}
    shutil.rmtree(out)
    return seconds, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=SHAPES, default="8B")
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--rows", type=int, default=128256, help="of the vocabulary")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--recipes", nargs="+", default=WALKS, help="those that + joins are made in one walk")
    options = parser.parse_args()
    cards = torch.cuda.get_device_name() if options.device == "cuda" else options.device
    print(f"{options.shape} shape, {options.blocks} blocks, {options.windows} × {options.length} calibration tokens, {cards}", flush=True)
    with tempfile.TemporaryDirectory(prefix="qlab-bench-") as work:
        folder = Path(work)
        few = max(options.counts)
        shape = SHAPES[options.shape][0] | {"rows": options.rows}
        small, model = (make_checkpoint(folder / f"made-up-{count}", count, alike=True, **shape) for count in (few, options.blocks))
        for recipes in [names.split("+") for names in options.recipes]:
            quantize(small, folder / "out", recipes, options, few)
            one, first = 0.0, dict[str, str]()
            for count in options.counts:
                start, _ = quantize(small, folder / "out", recipes, options, count)
                whole, found = quantize(model, folder / "out", recipes, options, count)
                block = (whole - start) / (options.blocks - few)
                one, first = one or block, first or found
                same = sum(first.get(name) == value for name, value in found.items())
                print(
                    f"{'+'.join(recipes)} on {count}: {whole:.1f} s for the command, {block:.2f} s for each further block, "
                    f"{one / block:.2f}× one GPU; {same} of {len(first)} files the same",
                    flush=True,
                )


if __name__ == "__main__":
    main()
