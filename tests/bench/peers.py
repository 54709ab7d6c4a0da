"""qlab's recipes beside the libraries that it replaces and those that users would pick today, on one model.

    python -m tests.bench.peers --model M --device cuda --calibration-windows 640 --calibration-length 256

One table, of recipes made one by one, so that `seconds` are of quantizing alone (imports not counted); then pairs, window by window: qlab's
recipes against what a library makes for the same use, and `tuned` against AutoRound and each library's GPTQ. AutoRound and llm-compressor
need `make peers`; where a library is missing, a line says so. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

from qlab.formats import awq
from qlab.peers.recipes import AutoAWQ, AutoGPTQ, AutoRound, BitsAndBytes, LlamaCpp, LLMCompressor
from qlab.recipes import Recipe, parse
from qlab.recipes.fitting import fitted_size, layers_of
from qlab.workbook.lesson import GROUP_SIZE, quiet
from tests.bench.rows import opened, subject_options

TUNED = ["tuned-w4g{}", "tuned-w4g{}-steps320", "tuned-w4g{}-steps320-batch8"]
OWN = ["rtn-w4g{}", "awq-w4g{}", "gptq-w4g{}", "gptq-w4g{}-asym-actorder", "awq-gptq-w4g{}", "nf4", "q4_k_m", *TUNED]
# A recipe of qlab's and what a library makes for the same use. Methods are the same but for what the names say (`awq-gptq` rounds by GPTQ
# too) and for qlab's defaults: order of columns, grids and codes searched after. {} stands for the model's group size.
BESIDE = [
    ("awq-w4g{}", "autoawq-w4g{}"),
    ("awq-gptq-w4g{}", "autoawq-w4g{}"),
    ("gptq-w4g{}", "autogptq-w4g{}"),
    ("gptq-w4g{}-asym-actorder", "autogptq-w4g{}-asym-actorder"),
    ("gptq-w4g{}", "llmcompressor-gptq-w4g{}"),
    ("nf4", "bitsandbytes-nf4-double"),
    ("q4_k_m", "llamacpp-q4_k_m"),
    ("q4_k_m", "llamacpp-q4_k_m-importance"),
]
LIBRARIES: dict[str, Callable[[int], Recipe]] = {
    "AutoAWQ": lambda size: AutoAWQ(size),
    "AutoGPTQ": lambda size: AutoGPTQ(group_size=size),
    "AutoGPTQ-asym-actorder": lambda size: AutoGPTQ(group_size=size, symmetric=False, act_order=True),
    "bitsandbytes": lambda size: BitsAndBytes(),
    "llama.cpp": lambda size: LlamaCpp(),
    "llama.cpp-importance": lambda size: LlamaCpp(search="importance"),
    "AutoRound-200": lambda size: AutoRound(group_size=size),
    "AutoRound-1000": lambda size: AutoRound(group_size=size, iterations=1000),
    "llm-compressor": lambda size: LLMCompressor(group_size=size),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subject_options(parser)
    parser.add_argument("--recipes", nargs="*", default=OWN, help="qlab's; {} stands for the model's group size")
    parser.add_argument("--libraries", nargs="*", choices=LIBRARIES, default=list(LIBRARIES))
    options = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory(prefix="qlab-bench-") as scratch:
        table, original = opened(options, options.work or Path(scratch))
        del original
        size, _ = fitted_size(GROUP_SIZE, layers_of(table.subject.source.layout), awq.unfit)
        theirs = [LIBRARIES[name](size) for name in options.libraries]
        for recipe in [*(parse(name.format(size)) for name in options.recipes), *theirs]:
            table.recipes([recipe])
        table.pairs((first.format(size), second.format(size)) for first, second in BESIDE)
        tuned = [recipe.name for recipe in theirs if isinstance(recipe, AutoGPTQ | AutoRound | LLMCompressor)]
        table.pairs(itertools.product((parse(name.format(size)).name for name in TUNED), tuned))


if __name__ == "__main__":
    main()
