"""Weights and activations in 8 bits beside what competes with them, on any model, and beside llm-compressor where that is installed.

    python -m tests.bench.eight_bits --model smollm2 --device cuda --text wiki.test --calibration wiki.train --calibration-windows 64

One table: KL to the original on held-out text, the share of tokens with the same likeliest next one, the KL that 1 % of the tokens exceed,
scores where --tasks asks for them, and what the weight files take; then window by window what each step changes. `rtn-w8a8` is the control:
activations rounded without SmoothQuant's migration; `rtn-w8grow-sym` rounds the weights alone. llm-compressor gets the same windows; where
it is missing, a line says so and which command installs it. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from qlab.peers.recipes import LLMCompressor
from qlab.recipes import parse
from qlab.workbook.lesson import quiet
from tests.bench.rows import opened, subject_options

OWN = [
    "rtn-w8grow-sym", "rtn-w8a8", "smooth-rtn-w8a8", "smooth-rtn-w8a8-static", "gptq-w8a8", "smooth-gptq-w8a8", "rtn-fp8", "gptq-w4g64-ct",
    "tuned-w4g64",
]  # fmt: skip
LIBRARY = [LLMCompressor(bits=8, smooth=True), LLMCompressor(group_size=64)]
PAIRS = [
    ("rtn-w8a8", "rtn-w8grow-sym"),
    ("smooth-rtn-w8a8", "rtn-w8a8"),
    ("smooth-rtn-w8a8-static", "smooth-rtn-w8a8"),
    ("gptq-w8a8", "rtn-w8a8"),
    ("smooth-gptq-w8a8", "smooth-rtn-w8a8"),
    ("rtn-fp8", "smooth-gptq-w8a8"),
    ("smooth-gptq-w8a8", LIBRARY[0].name),
    ("gptq-w4g64-ct", LIBRARY[1].name),
    ("tuned-w4g64", "gptq-w4g64-ct"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subject_options(parser)
    parser.add_argument("--recipes", nargs="*", default=OWN, help="qlab's")
    parser.add_argument("--no-library", action="store_true", help="leave llm-compressor out")
    options = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory(prefix="qlab-bench-") as scratch:
        table, original = opened(options, options.work or Path(scratch))
        del original
        own = [parse(name) for name in options.recipes]
        table.recipes(recipe for recipe in own if not recipe.sequential)
        table.recipes(recipe for recipe in own if recipe.sequential)  # tuned: by far the longest
        table.recipes([] if options.no_library else LIBRARY)
        table.pairs(PAIRS)


if __name__ == "__main__":
    main()
