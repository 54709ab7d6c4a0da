"""Memory predicted against measured, and speed by our clock against the runtime's own, in every runtime that is here.

`make bench-runtimes`. Two made-up models of random weights, large enough that a runtime's own work space is a small part of what it
holds, and a request a small part of what it takes: the figures are the predicted bytes, loaded and at the peak, with the measured
ones in ratio to them, and tokens a second. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from qlab.artifact import quantize_model
from qlab.evaluate.rounds import Protocol, measure_in_turns
from qlab.lesson import quiet
from qlab.model import locate
from qlab.recipes import parse
from tests.bench.made_up import make_checkpoint

RECIPES = ("q8_0", "q4_k_m", "nf4", "rtn-w4g128", "rtn-w4g128-sym")  # the last two: AWQ's and GPTQ's layouts, without calibration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--generated-tokens", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    parser.add_argument("--runtimes", nargs="*", default=[], help="only these of qlab bench's")
    o = parser.parse_args()
    quiet()
    table = Table("model", "artifact", "runtime", "MB predicted", "MB at the peak", "loaded", "prompting", "generating")
    speeds = Table("model", "artifact", "runtime", "prompt tok/s", "by its own clock", "generated tok/s", "by its own clock")
    for kind in ("llama", "qwen2"):
        with tempfile.TemporaryDirectory() as work:
            source = locate(str(make_checkpoint(Path(work) / kind, o.blocks, 2048, 5632, 16, 8, kind)))
            windows = torch.randint(1, 1000, (2, 64), generator=torch.Generator().manual_seed(0))
            made = quantize_model(source, [parse(name) for name in o.recipes], windows, Path(work) / "out")
            folders = {"original": source.path} | {artifact.path.name: artifact.path for artifact in made}
            for one in measure_in_turns(folders, o.runtimes, Protocol(o.prompt_tokens, o.generated_tokens, o.repetitions, 1)):
                if one.figures is None:
                    table.add_row(kind, one.name, one.runtime, one.problem)
                    continue
                memory = one.figures.memory
                total = memory.predicted
                peak = memory.predicted_peak or total  # where what computing takes is not known
                ratios = (memory.loaded / total, memory.prompting / peak, memory.generating / peak)
                sizes = (f"{total / 1e6:.0f}", f"{peak / 1e6:.0f}")
                table.add_row(kind, one.name, one.runtime, *sizes, *(f"{ratio:.2f}" for ratio in ratios))
                speed = one.figures.speed
                timed = [f"{speed.prompt:.1f} ± {speed.prompt_sd:.1f}", own(speed.prompt, speed.prompt_reported)]
                timed += [f"{speed.generation:.1f} ± {speed.generation_sd:.1f}", own(speed.generation, speed.generation_reported)]
                speeds.add_row(kind, one.name, one.runtime, *timed)
    Console(width=140).print(table, speeds)


def own(ours: float, reported: float | None) -> str:
    """What the runtime says of itself, and ours in parts of it."""
    return "-" if reported is None else f"{reported:.1f} ({ours / reported:.3f})"


if __name__ == "__main__":
    main()
