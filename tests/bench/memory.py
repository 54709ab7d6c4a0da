"""Memory predicted against measured, in every runtime that is here (`make bench-memory`).

Two made-up models of random weights, large enough that a runtime's own work space is a small part of what it holds: the figures
are the predicted bytes, loaded and at the peak, and the measured ones in ratio to them. Nothing here is a test.
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
    parser.add_argument("--runtimes", nargs="*", default=["transformers", "bitsandbytes", "autoawq", "autogptq", "llamacpp"])
    o = parser.parse_args()
    quiet()
    table = Table("model", "artifact", "runtime", "MB predicted", "MB at the peak", "loaded", "prompting", "generating")
    for kind in ("llama", "qwen2"):
        with tempfile.TemporaryDirectory() as work:
            source = locate(str(make_checkpoint(Path(work) / kind, o.blocks, 2048, 5632, 16, 8, kind)))
            windows = torch.randint(1, 1000, (2, 64), generator=torch.Generator().manual_seed(0))
            made = quantize_model(source, [parse(name) for name in RECIPES], windows, Path(work) / "out")
            folders = {"original": source.path} | {artifact.path.name: artifact.path for artifact in made}
            for one in measure_in_turns(folders, o.runtimes, Protocol(o.prompt_tokens, o.generated_tokens, 1, 2)):
                if one.figures is None:
                    table.add_row(kind, one.name, one.runtime, one.problem)
                    continue
                memory = one.figures.memory
                total = memory.predicted
                peak = memory.predicted_peak
                ratios = (memory.loaded / total, memory.prompting / peak, memory.generating / peak)
                sizes = (f"{total / 1e6:.0f}", f"{peak / 1e6:.0f}")
                table.add_row(kind, one.name, one.runtime, *sizes, *(f"{ratio:.2f}" for ratio in ratios))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
