"""Memory of a walk over a mixture with few large experts and over one with many small ones: as predicted before it, and as measured.

    python -m tests.bench.expert_memory

Makes up, in BF16, a Mixtral of 8 experts a block and a Qwen3-MoE of 64, of one total size (2 GB), and quantizes each by each recipe with
`qlab quantize`, in a process of its own. The prediction is that of `--dry-run` on the folder; the one that the command prints again with
its peak is the same but for the process's own pages. `--first N` ends each run when N blocks are written, since every block is like the
first, and prints the peak after each: where it grows from block to block, a whole run would take more. A machine with 3 GB of memory and
6 GB of disk.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from qlab.artifacts.budget import parse_bytes
from qlab.artifacts.going_on import STATES
from qlab.support.processes.process import peak_bytes
from qlab.walk.walk import encoded_parts
from tests.bench.made_up import make_checkpoint

MIXTURES = {8: "mixtral", 64: "qwen3_moe"}  # experts a block, and the family
RECIPES = ["rtn-w4g128", "gptq-w4g128", "q4_k_m"]
MLP = 32768  # the width of a block's experts together
KEPT = 0.1  # by how much the measured peak may differ from the prediction


@dataclass(frozen=True)
class Walked:
    """Bytes that `--dry-run` predicted, that the process took at its peak, and what the command took in seconds."""

    predicted: float
    found: float
    seconds: float


def command(model: Path, recipe: str, out: Path, windows: tuple[int, int]) -> list[str]:
    """`qlab quantize` with so many calibration windows of so many tokens."""
    found = [sys.executable, "-m", "qlab", "quantize", "--model", str(model), "--out", str(out), "--recipe", recipe]
    return [*found, "--windows", str(windows[0]), "--length", str(windows[1])]


def quantize(model: Path, recipe: str, out: Path, windows: tuple[int, int], *more: str) -> str:
    """What the command prints, in a process of its own."""
    return subprocess.run([*command(model, recipe, out, windows), *more], capture_output=True, text=True, check=True).stdout


def peak_and_prediction(model: Path, recipe: str, out: Path, windows: tuple[int, int] = (4, 128)) -> tuple[float, float]:
    """Bytes that `qlab quantize` took at its peak, and that it had said it would take."""
    printed = quantize(model, recipe, out, windows)
    found, predicted = map(parse_bytes, re.findall(r"peak memory (.+) \(predicted (.+)\)", printed)[0])
    return found, predicted


def peaks_of_first(model: Path, recipe: str, out: Path, windows: tuple[int, int], first: int) -> list[int]:
    """Bytes that the command took at most by the end of each of the `first` blocks, when it is ended.

    Raises:
        RuntimeError: it ended before them.
    """
    peaks: list[int] = []
    with tempfile.TemporaryFile() as said, subprocess.Popen(command(model, recipe, out, windows), stdout=said, stderr=said) as process:
        try:
            while len(peaks) < first:
                time.sleep(0.1)
                if process.poll() is not None:
                    said.seek(0)
                    raise RuntimeError(f"ended after {len(peaks)} blocks: {said.read().decode()}")
                with suppress(OSError):  # it may end, and a folder may go, meanwhile
                    most = peak_bytes(process.pid)
                    written = [int(part.stem[5:9]) for state in out.glob(STATES) for part in encoded_parts(state, recipe)]
                    peaks += [most] * (max(written, default=0) - len(peaks))  # part 0 lies outside blocks
        finally:
            process.kill()
    return peaks


def walked(model: Path, recipe: str, out: Path, windows: tuple[int, int], first: int | None) -> Walked:
    """The prediction from the folder alone, then the walk, or its `first` blocks."""
    (predicted,) = re.findall(r"predicted: (.+?) of memory", quantize(model, recipe, out, windows, "--dry-run"))
    started = time.perf_counter()
    if first is None:
        found, _ = peak_and_prediction(model, recipe, out, windows)
    else:
        peaks = peaks_of_first(model, recipe, out, windows, first)
        print(f"    peaks by block: {', '.join(f'{peak / 1e9:.2f}' for peak in peaks)} GB", flush=True)
        found = peaks[-1]
    return Walked(parse_bytes(predicted), found, time.perf_counter() - started)


def compare(
    work: Path, experts: Sequence[int], recipes: Sequence[str], blocks: int, hidden: int, windows: tuple[int, int], first: int | None
) -> None:
    """A table: mixtures and recipes, predicted and measured."""
    print(f"{windows[0]} × {windows[1]} calibration tokens", flush=True)
    ratios: dict[tuple[str, int], float] = {}
    for number in experts:
        shape = {"hidden": hidden, "mlp": MLP, "heads": hidden // 128, "kv_heads": 4}
        model = make_checkpoint(work / f"{number}", blocks, **shape, kind=MIXTURES[number], experts=number, dtype=torch.bfloat16)
        size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        for recipe in recipes:
            one = walked(model, recipe, work / "out", windows, first)
            ratios[recipe, number] = one.found / one.predicted
            kept = "kept" if abs(ratios[recipe, number] - 1) <= KEPT else "NOT KEPT"
            of = f"{first} of {blocks}" if first else str(blocks)
            print(
                f"{MIXTURES[number]:10} {number:3} experts a block, {of} blocks, {size / 1e9:.2f} GB  {recipe:14} "
                f"predicted {one.predicted / 1e9:.2f} GB, found {one.found / 1e9:.2f} GB: {one.found / one.predicted:.3f}×, {kept}; "
                f"{one.seconds:.0f} s",
                flush=True,
            )
            shutil.rmtree(work / "out")
        shutil.rmtree(model)
    for recipe in recipes if len(experts) > 1 else ():
        least, most = min(ratios[recipe, number] for number in experts), max(ratios[recipe, number] for number in experts)
        print(f"{recipe}: the ratio differs by {most / least - 1:.1%} between {' and '.join(map(str, experts))} experts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, nargs="+", choices=MIXTURES, default=list(MIXTURES))
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--blocks", type=int, default=5, help="of 0.42 GB each with the usual width")
    parser.add_argument("--hidden", type=int, default=2048, help="width of the model, a multiple of 512; time grows with its square")
    parser.add_argument("--first", type=int, help="blocks after which a run is ended")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qlab-bench-") as work:
        windows = options.windows, options.length
        compare(Path(work), options.experts, options.recipes, options.blocks, options.hidden, windows, options.first)


if __name__ == "__main__":
    main()
