"""Memory predicted against measured, and speed by our clock against the runtime's own, in every runtime that is here.

`make bench-runtimes`. Two made-up models of random weights, large enough that a runtime's own work space is a small part of what it
holds; servers are timed by `qlab bench`'s 512 and 128 tokens, so that a request is a small part of what it takes. The figures are the
predicted bytes, loaded and at the peak, with the measured ones in ratio to them, and tokens a second. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from qlab.artifacts.artifact import quantize_model
from qlab.evaluate.engines import RUNNERS
from qlab.evaluate.rounds import Protocol, measure_in_turns
from qlab.evaluate.runtime import RuntimeFigures
from qlab.models.locating import kind_of
from qlab.models.opening import locate
from qlab.recipes import parse
from qlab.workbook.lesson import quiet
from tests.bench.made_up import make_checkpoint

RECIPES = ("q8_0", "q4_k_m", "nf4", "rtn-w4g128", "rtn-w4g128-sym")  # the last two: AWQ's and GPTQ's layouts, without calibration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=64, help="in PyTorch's libraries")
    parser.add_argument("--generated-tokens", type=int, default=4, help="there too; some make less than one a second on a CPU")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    parser.add_argument("--runtimes", nargs="*", default=[], help="only these of qlab bench's")
    o = parser.parse_args()
    quiet()
    in_process = Protocol(o.prompt_tokens, o.generated_tokens, o.repetitions)
    protocols = dict.fromkeys(("llamacpp", "vllm"), Protocol(repetitions=o.repetitions))
    print("Bytes in MB, the measured ones in parts of what was predicted; tokens a second by our clock, and by the runtime's own.")
    for kind in ("llama", "qwen2"):
        with tempfile.TemporaryDirectory() as work:
            source = locate(str(make_checkpoint(Path(work) / kind, o.blocks, 2048, 5632, 16, 8, kind)))
            windows = torch.randint(1, 1000, (2, 64), generator=torch.Generator().manual_seed(0))
            made = quantize_model(source, [parse(name) for name in o.recipes], windows, Path(work) / "out")
            for folder in [source.path, *(artifact.path for artifact in made)]:
                for runtime in [name for name in o.runtimes or RUNNERS if kind_of(folder) in RUNNERS[name].kinds]:
                    (one,) = measure_in_turns({folder.name: folder}, [runtime], protocols.get(runtime, in_process))
                    said = described(one.figures) if one.figures else one.problem
                    print(f"{kind:6} {'original' if folder is source.path else one.name:15} {one.runtime:28} {said}", flush=True)


def described(figures: RuntimeFigures) -> str:
    """Memory against its prediction, and both clocks."""
    memory, speed = figures.memory, figures.speed
    peak = memory.predicted_peak
    words = f"{memory.predicted / 1e6:4.0f} loaded {memory.loaded / memory.predicted:.2f}"
    words += f" | {(peak or memory.predicted) / 1e6:4.0f}{'' if peak else ' (no peak known)'}"
    words += "".join(f" {name} {getattr(memory, name) / (peak or memory.predicted):.2f}" for name in ("prompting", "generating"))
    words += f" | prompt {speed.prompt:.1f} ± {speed.prompt_sd:.1f}{own(speed.prompt, speed.prompt_reported)}"
    return words + f", generation {speed.generation:.1f} ± {speed.generation_sd:.1f}{own(speed.generation, speed.generation_reported)}"


def own(ours: float, reported: float | None) -> str:
    """What the runtime says of itself, and ours in parts of it."""
    return "" if reported is None else f", itself {reported:.1f} ({ours / reported:.3f})"


if __name__ == "__main__":
    main()
