"""What users would pick today against what qlab has for it: AutoRound (200 and 1000 steps) and llm-compressor beside `tuned`, `gptq` and
`awq-gptq`, from the same calibration windows, judged on the same held-out text: `python -m tests.bench.peers --device cuda`. It needs
`make peers`, without which the libraries' rows say so.

Prints KL divergence to the original, seconds of quantizing alone (imports not counted), and differences in pairs, window by window. Nothing
here is a test: a ratio of one run is read by people.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

from qlab.artifacts.artifact import make_artifact
from qlab.evaluate.kept import kept_logits
from qlab.evaluate.quality import Quality, measure_quality, paired_difference
from qlab.formats import awq
from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import locate
from qlab.models.plain_copy import plain_copy
from qlab.models.texts.windows import read_windows
from qlab.peers.recipes import AutoRound, LLMCompressor
from qlab.recipes import Recipe, parse
from qlab.recipes.fitting import fitted_size, layers_of
from qlab.walk.by_block import predictor
from qlab.workbook.lesson import GROUP_SIZE, quiet
from qlab.workbook.refused import able, check_recipe

OWN = ["rtn-w4g{}", "gptq-w4g{}", "awq-gptq-w4g{}", "tuned-w4g{}", "tuned-w4g{}-steps320"]
LIBRARIES: dict[str, Callable[[int], Recipe]] = {
    "AutoRound-200": lambda size: AutoRound(group_size=size),
    "AutoRound-1000": lambda size: AutoRound(group_size=size, iterations=1000),
    "llm-compressor": lambda size: LLMCompressor(group_size=size),
}


def compare(model: str, options: argparse.Namespace, work: Path) -> None:
    """Print every recipe's row for one model, and `tuned` against each of the libraries in pairs."""
    source = locate(model)
    if source.checkpoint.quantized:
        source = plain_copy(source, work / "plain")
    size, _ = fitted_size(GROUP_SIZE, layers_of(source.layout), awq.unfit)
    tokenizer = load_tokenizer(source)
    calibration = read_windows(options.calibration, tokenizer, options.length, options.windows).windows
    held_out = read_windows(options.text, tokenizer, options.held_out_length, options.held_out).windows
    expected = kept_logits(load(source, device=options.device), held_out.split(1), work)
    recipes = [*(parse(name.format(size)) for name in options.recipes), *(LIBRARIES[name](size) for name in options.libraries)]
    wanted = {recipe.name: recipe for recipe in recipes}
    print(f"{source.name}: {calibration.numel()} calibration tokens, {held_out.numel()} held out, on {options.device}", flush=True)
    found = dict[str, tuple[Quality, float]]()
    for name, recipe in able(wanted, lambda recipe: check_recipe(recipe, source)).items():
        made = make_artifact(recipe, source, calibration, str(work), device=options.device)
        judged, _ = predictor(made.source, held_out, options.device, work)
        quality = measure_quality(judged, held_out, expected)
        found[name] = quality, made.seconds
        row = f"{name:32} KL {quality.kl:.5f} ± {quality.kl_stderr:.5f}  same top token {quality.top1:.1%}"
        print(f"{row}  {made.seconds:7.1f} s  {made.disk_bytes / 1e6:.1f} MB", flush=True)
    ours = [name for name in found if name.startswith("tuned-")]
    theirs = [name for name, recipe in wanted.items() if name in found and isinstance(recipe, AutoRound | LLMCompressor)]
    for one, other in itertools.product(ours, theirs):
        (own, took), (quality, seconds) = found[one], found[other]
        difference, error = paired_difference(own.kl_windows or [], quality.kl_windows or [])
        mean = quality.kl or 1.0
        print(f"{one} against {other}: KL {difference / mean:+.1%} ± {error / mean:.1%}, {took / seconds:.2f} of its time", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["embedded"])
    parser.add_argument("--recipes", nargs="*", default=OWN, help="of qlab; {} stands for the model's group size")
    parser.add_argument("--libraries", nargs="*", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--calibration", default="docstrings", help="text that qlab names, or a file")
    parser.add_argument("--text", default="python-reference", help="held-out text")
    parser.add_argument("--windows", type=int, default=640, help="calibration windows")
    parser.add_argument("--length", type=int, default=256, help="tokens in each")
    parser.add_argument("--held-out", type=int, default=40)
    parser.add_argument("--held-out-length", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    quiet()
    for model in options.model:
        with tempfile.TemporaryDirectory(prefix="qlab-bench-") as work:
            compare(model, options, Path(work))


if __name__ == "__main__":
    main()
