"""Statistics of each expert's own tokens against those of all tokens for all experts: a small mixture of experts, trained here on the
docstrings so that its routing is real, quantized both ways (`python -m tests.bench.experts`; ten minutes on two cores).

Prints KL divergence to the unquantized model on held-out text, in pairs by window, and what the rarely chosen experts cost: by how much
KL falls when they get their own weights back. Nothing here is a test: a model trained for some minutes differs from machine to machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from qlab.artifacts.artifact import quantize_model
from qlab.evaluate.quality import Quality, measure_quality, paired_difference
from qlab.models.experts import Experts
from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import OpenedModel, locate
from qlab.models.texts.windows import read_windows
from qlab.peers.patching import patched
from qlab.recipes import parse
from qlab.walk import routing
from qlab.walk.routing import Routing, Shown
from qlab.workbook.lesson import quiet

RECIPES = ["rtn-w4g64", "rtn-w4g64-search", "awq-w4g64", "gptq-w4g64-asym", "awq-gptq-w4g64", "tuned-w4g64-steps40", "gptq-w3g64-asym"]
OWN = f"its own tokens, filled up to {routing.RARE}"
ALONE, ALL = "its own tokens alone", "all tokens"


def trained(folder: Path, experts: int, minutes: float) -> tuple[OpenedModel, int]:
    """A Qwen3-MoE of four blocks, two experts a token, trained on the docstrings for so long; and the steps that this was."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(locate("embedded"))
    config = Qwen3MoeConfig(
        vocab_size=4096, hidden_size=128, intermediate_size=256, moe_intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, num_experts=experts, num_experts_per_tok=2, norm_topk_prob=True, tie_word_embeddings=True,
        max_position_embeddings=512, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config)
    windows = read_windows("docstrings", tokenizer, 128, 20_000).windows
    order = windows[torch.randperm(len(windows))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0)
    started, steps = time.monotonic(), 0
    while (spent := time.monotonic() - started) < 60 * minutes:
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (steps + 1) / 20, max(0.02, 2 - 2 * spent / (60 * minutes)))
        batch = order[torch.arange(16 * steps, 16 * steps + 16) % len(order)]
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return locate(str(folder)), steps


def ways() -> dict[str, list[tuple[Any, str, Any]]]:
    """What of qlab is another in each way to show an expert tokens."""

    def everything(self: Routing, expert: int) -> Shown:
        return Shown(self.inputs, torch.arange(sum(map(len, self.chosen))))

    return {OWN: [], ALONE: [(routing, "RARE", 1)], ALL: [(Routing, "shown", everything)]}


def counts(model: Any, windows: Tensor) -> dict[str, list[int]]:
    """How many tokens of the windows each expert is given, by the name of its list, in a model whose experts are apart."""
    found: dict[str, Tensor] = {}
    hooks = []
    for name, experts in model.named_modules():
        if isinstance(experts, Experts):
            found[name] = torch.zeros(len(experts), dtype=torch.int64)

            def note(_: Any, given: tuple[Tensor, ...], into: Tensor = found[name]) -> None:
                into += torch.bincount(given[1].flatten(), minlength=len(into))

            hooks.append(experts.register_forward_pre_hook(note))
    with torch.inference_mode():
        for window in windows.split(4):
            model(input_ids=window, use_cache=False)
    for hook in hooks:
        hook.remove()
    return {name: count.tolist() for name, count in found.items()}


def without_rare(artifact: OpenedModel, original: Any, rare: Callable[[str, int], bool]) -> Any:
    """The artifact's model with the original's weights in its rare experts."""
    model: Any = load(artifact, apart=True)
    theirs = dict(original.named_modules())
    for name, experts in model.named_modules():
        for number, expert in enumerate(experts if isinstance(experts, Experts) else ()):
            if rare(name, number):
                expert.load_state_dict(theirs[name][number].state_dict())
    return model


def in_words(first: Quality, second: Quality) -> str:
    """By how much the first's KL differs from the second's, in pairs by window."""
    difference, error = paired_difference(first.kl_windows or [], second.kl_windows or [])
    mean = second.kl or 1
    return f"{difference / mean:+.1%} ± {error / mean:.1%}"


def compare(source: OpenedModel, options: argparse.Namespace, work: Path) -> None:
    tokenizer, original = load_tokenizer(source), load(source, apart=True)
    calibration = read_windows("docstrings", tokenizer, 128, options.windows).windows
    held_out = read_windows(options.text, tokenizer, 256, 24).windows
    given, judged = counts(original, calibration), counts(original, held_out)
    rare = {(name, number) for name, each in given.items() for number, count in enumerate(each) if count < routing.RARE}
    everyone = [count for each in given.values() for count in each]
    share = sum(judged[name][number] for name, number in rare) / sum(map(sum, judged.values()))
    print(
        f"{calibration.numel()} calibration tokens; an expert is given {min(everyone)} to {max(everyone)} of them; {len(rare)} of "
        f"{len(everyone)} experts fewer than {routing.RARE}, which compute {share:.1%} of what experts compute on the held-out text"
    )
    found: dict[str, dict[str, tuple[OpenedModel, Quality]]] = {}
    for way, changes in ways().items():
        with patched(*changes):
            made = quantize_model(source, [parse(name) for name in RECIPES], calibration, work / way.replace(" ", "-"))
        for name, artifact in zip(RECIPES, made, strict=True):
            found.setdefault(name, {})[way] = artifact.source, measure_quality(load(artifact.source), held_out, original)
    print(f"\n{'recipe':22} {'KL, ' + OWN:>38}  {ALONE + ', against that':>36}  {ALL + ', against that':>26}  rare experts' part of KL")
    for name, by_way in found.items():
        artifact, own = by_way[OWN]
        spared = measure_quality(without_rare(artifact, original, lambda *expert: expert in rare), held_out, original)
        print(
            f"{name:22} {own.kl:>26.5f} ± {own.kl_stderr:.5f}  {in_words(by_way[ALONE][1], own):>36}  {in_words(by_way[ALL][1], own):>26}  "
            f"{in_words(own, spared)}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=3.0, help="of training")
    parser.add_argument("--windows", type=int, nargs="+", default=[8, 64], help="calibration windows of 128 tokens, one run each")
    parser.add_argument("--text", default="python-reference", help="held-out text to judge by")
    options = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory(prefix="qlab-bench-") as work:
        source, steps = trained(Path(work) / "model", options.experts, options.minutes)
        print(f"a Qwen3-MoE of {options.experts} experts a block, trained for {steps} steps of 16 × 128 tokens")
        for number in options.windows:
            compare(source, argparse.Namespace(**vars(options) | {"windows": number}), Path(work) / f"{number}")


if __name__ == "__main__":
    main()
