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

MIXES = ["q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subject_options(parser)
    parser.add_argument("--mixes", nargs="+", default=MIXES)
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
            ours = [GGUF(mix, "plain"), replace(GGUF(mix, "importance"), imatrix=files), replace(GGUF(mix), imatrix=files)]
            theirs = [LlamaCpp(mix), replace(LlamaCpp(mix, "importance"), imatrix=files)]
            table.recipes([*ours, *theirs])
            pairs += [(ours[0].name, theirs[0].name), (ours[1].name, theirs[1].name), (ours[2].name, theirs[1].name)]
        table.pairs(pairs)
        for first, second in pairs:
            if first in table.made and second in table.made:
                sizes = [sum(file.stat().st_size for file in table.made[name].source.files) for name in (first, second)]
                print(f"{first}: {sizes[0]:,} bytes, {second}: {sizes[1]:,}")


if __name__ == "__main__":
    main()
