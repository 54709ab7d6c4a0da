"""GGUF's types of four bits by qlab and by llama.cpp's own quantizer, in the same bytes and by the same importance file, on any model.

    python -m tests.bench.codebooks --model embedded --windows 40

`plain`: no calibration. `importance`: by the file, as `llama-quantize --imatrix` does. Without a word behind it: by the file, and then the
codes are settled by the calibration text, which llama.cpp's quantizer cannot. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from qlab.formats.imatrix import ImatrixFile, write_imatrix
from qlab.peers.recipes import LlamaCpp
from qlab.recipes import GGUF
from qlab.recipes.importance import measure
from qlab.workbook.lesson import quiet
from tests.bench.rows import opened, subject_options

SEARCHES = ["plain", "importance", "settled"]
MIXES = ["q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subject_options(parser)
    parser.add_argument("--mixes", nargs="+", default=MIXES)
    parser.add_argument("--searches", nargs="+", default=SEARCHES, choices=SEARCHES, help="qlab's; settled takes longest")
    parser.add_argument("--imatrix", type=Path, help="an importance file of llama-imatrix; else it is measured on the calibration windows")
    options = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory(prefix="qlab-bench-") as scratch:
        table, original = opened(options, options.work or Path(scratch))
        del original
        file = options.imatrix
        if file is None:
            file = Path(scratch) / "imatrix.gguf"
            subject = table.subject
            write_imatrix(file, measure(subject.source, subject.calibration, [options.calibration], Path(scratch), subject.device))
        files, pairs = (ImatrixFile(file),), []
        for mix in options.mixes:
            theirs, weighted = LlamaCpp(mix), replace(LlamaCpp(mix, "importance"), imatrix=files)
            beside = {search: (GGUF(mix, search, imatrix=files), weighted) for search in options.searches}
            beside |= {"plain": (GGUF(mix, "plain"), theirs)} if "plain" in beside else {}
            table.recipes([*(ours for ours, _ in beside.values()), *dict.fromkeys(its for _, its in beside.values())])
            pairs += [(ours.name, its.name) for ours, its in beside.values()]
        table.pairs(pairs)
        for first, second in pairs:
            if first in table.made and second in table.made:
                sizes = [sum(file.stat().st_size for file in table.made[name].source.files) for name in (first, second)]
                print(f"{first}: {sizes[0]:,} bytes, {second}: {sizes[1]:,}")


if __name__ == "__main__":
    main()
