"""Statistics of each expert's own tokens against those of all tokens for all experts: a small mixture of experts, trained here on the
docstrings so that its routing is real, quantized both ways (`python -m tests.bench.experts`; some three minutes on one core that is free).

Prints KL divergence to the unquantized model on held-out text, in pairs by window, and what the rarely chosen experts cost: by how much
KL falls when they get their own weights back. Nothing here is a test: machines round differently, so the model is another on each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from qlab.artifacts.artifact import quantize_model
from qlab.evaluate.quality import Quality, measure_each, paired_difference
from qlab.models.experts import Experts
from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import OpenedModel, locate
from qlab.models.texts.windows import read_windows
from qlab.peers.patching import patched
from qlab.recipes import parse
from qlab.walk import routing
from qlab.walk.routing import Routing, Shown
from qlab.workbook.lesson import quiet

BATCH, LENGTH, HELD_OUT = 4, 128, (16, 256)
RECIPES = ["awq-w4g64", "gptq-w4g64-asym", "tuned-w4g64-steps40"]
BLIND = ["rtn-w4g64"]  # reads no statistics
OWN, ALONE, ALL = f"own tokens, filled up to {routing.RARE}", "own tokens alone", "all tokens"
Expert = tuple[str, int]
"""The name of a list of experts, and a number in it."""


@dataclass(frozen=True)
class Judged:
    """What quantizing in one way came to, and that with the rare experts' own weights put back."""

    whole: Quality
    spared: Quality


def trained(folder: Path, experts: int, steps: int) -> OpenedModel:
    """A Qwen3-MoE of two blocks, two experts a token, trained on the docstrings."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(locate("embedded"))
    config = Qwen3MoeConfig(
        vocab_size=4096, hidden_size=128, intermediate_size=256, moe_intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, num_experts=experts, num_experts_per_tok=2, norm_topk_prob=True, tie_word_embeddings=True,
        max_position_embeddings=512, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config)
    windows = read_windows("docstrings", tokenizer, LENGTH, 20_000).windows
    order = windows[torch.randperm(len(windows))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0)
    loss, started = torch.zeros(()), time.monotonic()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 20, max(0.02, 2 - 2 * step / steps))
        batch = order[torch.arange(BATCH * step, BATCH * step + BATCH) % len(order)]
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(
        f"a Qwen3-MoE of {experts} experts a block, two a token, trained for {steps} steps of {BATCH} × {LENGTH} tokens in "
        f"{time.monotonic() - started:.0f} s; its last step's loss is {loss:.2f} nats a token",
        flush=True,
    )
    return locate(str(folder))


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


def without_rare(artifact: OpenedModel, original: Any, rare: set[Expert]) -> Any:
    """The artifact's model with the original's weights in its rare experts, for what the norm before them makes in this model: AWQ has
    put the inverse of a scale into it."""
    model: Any = load(artifact, apart=True)
    theirs = dict(original.named_modules())
    for name, number in rare:
        norm, expert = name.replace("mlp.experts", "post_attention_layernorm"), model.get_submodule(name)[number]
        expert.load_state_dict(theirs[name][number].state_dict())
        scale = theirs[norm].weight.data / model.get_submodule(norm).weight.data
        for layer in (expert.gate_proj, expert.up_proj):
            layer.weight.data.mul_(scale)
    return model


def in_words(first: Quality, second: Quality) -> str:
    """By how much the first's KL differs from the second's, in pairs by window."""
    difference, error = paired_difference(first.kl_windows or [], second.kl_windows or [])
    mean = second.kl or 1
    return f"{difference / mean:+.1%} ± {error / mean:.1%}"


def judged(source: OpenedModel, original: Any, calibration: Tensor, held_out: Tensor, rare: set[Expert], work: Path) -> dict[str, Any]:
    """Of each recipe, by the way in which experts were shown tokens: how far it is from the original."""
    found: dict[str, dict[str, Judged]] = {}
    for way, changes in ways().items():
        names = [*BLIND, *RECIPES] if way == OWN else RECIPES
        with patched(*changes):
            made = quantize_model(source, [parse(name) for name in names], calibration, work / way.replace(" ", "-"))
        models = [model for artifact in made for model in (load(artifact.source), without_rare(artifact.source, original, rare))]
        figures = measure_each(models, held_out, original)
        for name, whole, spared in zip(names, figures[::2], figures[1::2], strict=True):
            found.setdefault(name, {})[way] = Judged(whole, spared)
    return found


def compare(source: OpenedModel, number: int, text: str, work: Path) -> None:
    tokenizer, original = load_tokenizer(source), load(source, apart=True)
    calibration = read_windows("docstrings", tokenizer, LENGTH, number).windows
    held_out = read_windows(text, tokenizer, HELD_OUT[1], HELD_OUT[0]).windows
    given, asked = counts(original, calibration), counts(original, held_out)
    rare = {(name, number) for name, each in given.items() for number, count in enumerate(each) if count < routing.RARE}
    everyone = sorted(count for each in given.values() for count in each)
    share = sum(asked[name][number] for name, number in rare) / sum(map(sum, asked.values()))
    print(
        f"\n{calibration.numel()} calibration tokens; an expert is given {everyone[0]} to {everyone[-1]} of them (median "
        f"{everyone[len(everyone) // 2]}); {len(rare)} of {len(everyone)} experts fewer than {routing.RARE}, which compute {share:.1%} of "
        f"what experts compute on {held_out.numel()} tokens of {text}",
        flush=True,
    )
    for name, by_way in judged(source, original, calibration, held_out, rare, work).items():
        own = by_way[OWN].whole
        print(f"{name:20} KL {own.kl:.5f} ± {own.kl_stderr:.5f} with {OWN}", flush=True)
        for way in [way for way in (ALONE, ALL) if way in by_way]:
            print(f"{'':20} {in_words(by_way[way].whole, own):>16} with {way}")
        for way, each in by_way.items():
            print(
                f"{'':20} {in_words(each.whole, each.spared):>16} is what the rare experts cost{f' with {way}' if name in RECIPES else ''}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300, help="of training")
    parser.add_argument("--windows", type=int, nargs="+", default=[8, 32], help=f"calibration windows of {LENGTH} tokens, one run each")
    parser.add_argument("--text", default="python-reference", help="held-out text to judge by")
    options = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory(prefix="qlab-bench-") as work:
        source = trained(Path(work) / "model", options.experts, options.steps)
        for number in options.windows:
            compare(source, number, options.text, Path(work) / f"{number}")


if __name__ == "__main__":
    main()
