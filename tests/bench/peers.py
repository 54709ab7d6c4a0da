"""What users would pick today beside qlab's: AutoRound (200 and 1000 steps) and llm-compressor beside `tuned`, `gptq` and `awq-gptq`.

    python -m tests.bench.peers --model M --device cuda --calibration-windows 640 --calibration-length 256

One table, of recipes made one by one, so that `seconds` are of quantizing alone (imports not counted); then `tuned` against each library,
window by window. The libraries need `make peers`; where they are missing, a line says so. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

from qlab.formats import awq
from qlab.peers.recipes import AutoRound, LLMCompressor
from qlab.recipes import Recipe, parse
from qlab.recipes.fitting import fitted_size, layers_of
from qlab.workbook.lesson import GROUP_SIZE, quiet
from tests.bench.rows import opened, subject_options

TUNED = ["tuned-w4g{}", "tuned-w4g{}-steps320"]
OWN = ["rtn-w4g{}", "gptq-w4g{}", "awq-gptq-w4g{}", *TUNED]
LIBRARIES: dict[str, Callable[[int], Recipe]] = {
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
        table.pairs(itertools.product((parse(name.format(size)).name for name in TUNED), (recipe.name for recipe in theirs)))


if __name__ == "__main__":
    main()
