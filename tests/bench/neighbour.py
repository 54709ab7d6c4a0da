"""How much longer a walk takes beside busy programs (`make bench-neighbour`; three minutes).

Walks over two blocks in the shape of SmolLM2-135M, or the blocks of `--model`, alone and beside programs that keep a core busy each. The
machine should have nothing else to do: what is busy at the start is printed. Taken are the shortest of some turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from qlab.artifacts.artifact import quantize_model
from qlab.models.loading import load_tokenizer
from qlab.models.opening import OpenedModel, locate
from qlab.models.texts.windows import read_windows
from qlab.recipes import parse
from qlab.support.processes.process import run_isolated
from qlab.workbook.lesson import quiet
from tests.bench.made_up import make_checkpoint


def walk(source: OpenedModel, calibration: torch.Tensor, name: str) -> float:
    """Seconds of a walk, without those in which the process starts."""
    with tempfile.TemporaryDirectory(prefix="qlab-bench-") as out:
        started = time.perf_counter()
        quantize_model(source, [parse(name)], calibration, Path(out))
        return time.perf_counter() - started


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Within the context, so many programs keep a core busy each; in sessions of their own, as programs of other terminals are."""
    command = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command, start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder, instead of made-up weights")
    parser.add_argument("--recipe", nargs="+", default=["gptq-w4g64", "awq-w4g64", "q4_k_m", "nf4"])
    parser.add_argument("--neighbours", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    quiet()
    busy = psutil.cpu_percent(1) / 100 * psutil.cpu_count()
    print(f"{psutil.cpu_count()} cores, {busy:.1f} of them busy with other programs; {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory(prefix="qlab-bench-") as work:
        source = locate(options.model or str(make_checkpoint(Path(work) / "made-up", 2, hidden=576, mlp=1536, heads=9, kv_heads=3)))
        calibration = read_windows("docstrings", load_tokenizer(source), 512, 32).windows
        for name in options.recipe:
            found: dict[int, list[float]] = {}
            for _ in range(options.turns):
                for count in (0, *options.neighbours):
                    with neighbours(count):
                        found.setdefault(count, []).append(run_isolated(walk, source, calibration, name).value)
            alone = min(found.pop(0))
            beside = (f"beside {count} {min(seconds):.1f} s, {min(seconds) / alone:.2f}×" for count, seconds in found.items())
            print(f"{name:14} alone {alone:.1f} s; {'; '.join(beside)}", flush=True)


if __name__ == "__main__":
    main()
