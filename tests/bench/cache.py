"""What a KV cache of fewer bits saves and costs in llama.cpp: memory beside the planner's, speed, and KL by its predictions and by ours.

    python -m tests.bench.cache --model smollm2 --lengths 256 1024 --cells 65536
    python -m tests.bench.cache --model smollm2 --cells 4096 --memory-only

What a smaller cache saves is the difference to FP16, of memory that is the server's alone, and as the planner has it; `off` is by how much
the planner is wrong, of that and of all that the server holds.

The server's KL is between its own predictions with this cache and with one in FP16, for every token of the vocabulary, at places spread
over the windows; ours, at the same places, between the model in this process and itself with keys and values rounded.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from qlab.artifacts.artifact import quantize_model
from qlab.evaluate.arithmetic import cached_in
from qlab.evaluate.kept import next_token_logits
from qlab.evaluate.quality import measure_each
from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import locate
from qlab.models.texts.windows import read_windows
from qlab.recipes import parse
from qlab.serve.runtimes.llamacpp import LlamaCpp, post
from qlab.serve.runtimes.runtime import expected_memory
from qlab.serve.server import on_free_port, serving
from qlab.support.disk.scratch import Scratch

CACHES = ("f16", "q8_0", "q4_0")
GENERATED = 64


def distribution(url: str, prompt: list[int], vocabulary: int) -> Tensor:
    """log-probabilities float64 [vocabulary] of the token after `prompt`, as the server computes them."""
    asked = {"prompt": prompt, "n_predict": 1, "n_probs": vocabulary, "temperature": 0, "cache_prompt": True}
    (answer,) = post(url, "/completion", asked)["completion_probabilities"]
    found = torch.full((vocabulary,), -torch.inf, dtype=torch.float64)
    for entry in answer["top_logprobs"]:
        found[entry["id"]] = entry["logprob"]
    return found.log_softmax(-1)


def distance(exact: Tensor, other: Tensor) -> float:
    """KL in nats; where the server gives no number for a token, it counts for nothing."""
    return float(torch.where(exact.isfinite() & other.isfinite(), exact.exp() * (exact - other), 0.0).sum())


def places(length: int, count: int) -> list[int]:
    """Ends of prompts, spread over a window."""
    return sorted({round(length * (number + 1) / count) for number in range(count)} - {0})


@torch.inference_mode()
def predictions(model: nn.Module, windows: Tensor, ends: list[int]) -> list[Tensor]:
    """The model's log-probabilities float64 [vocabulary] after each of `ends` of each window."""
    logits = [next_token_logits(model, window[None]).double().log_softmax(-1) for window in windows]
    return [one[end - 1] for one in logits for end in ends]


def served(folder: Path, cache: str, windows: Tensor, ends: list[int], vocabulary: int) -> tuple[list[Tensor], dict[str, float]]:
    """The server's predictions after each of `ends` of each window, and its speeds with a whole window read."""
    deployment = on_free_port(folder, windows.shape[1] + GENERATED + 8, cache=cache)
    with serving(LlamaCpp(), deployment) as server:
        found = [distribution(server.url, window[:end].tolist(), vocabulary) for window in windows for end in ends]
        asked = {"prompt": windows[0].tolist(), "n_predict": GENERATED, "ignore_eos": True, "cache_prompt": False}
        timings = [post(server.url, "/completion", asked)["timings"] for _ in range(3)]
    return found, {name: sorted(each[name] for each in timings)[1] for name in ("prompt_per_second", "predicted_per_second")}


def memory(folder: Path, cache: str, cells: int) -> dict[str, float]:
    """Bytes that a server with room for so many tokens holds once it has read a prompt, those that are its `own` alone, and as the planner
    has them."""
    deployment = on_free_port(folder, cells, cache=cache)
    expected = expected_memory(LlamaCpp(), deployment)
    assert expected is not None
    with serving(LlamaCpp(), deployment) as server:
        post(server.url, "/completion", {"prompt": [5] * min(600, cells // 2), "n_predict": 1})
        first = psutil.Process(server.process.pid)
        own = sum(process.memory_full_info().uss for process in [first, *first.children(recursive=True)])
        return {"held": server.held_bytes(), "own": own, "predicted": expected.total, "cache predicted": expected.cached}


def saved(found: Mapping[str, float], whole: Mapping[str, float]) -> dict[str, float]:
    """What one cache saves beside a `whole` one, measured and predicted, and how far the planner is off, as a share."""
    measured, predicted = whole["own"] - found["own"], whole["predicted"] - found["predicted"]
    off = {"off": predicted / measured - 1} if predicted else {}
    return {"saved": measured, "saved predicted": predicted, "held off": found["predicted"] / found["held"] - 1} | off


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--text", default="python-reference")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1000])
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--places", type=int, default=8, help="of each window, where the server's predictions are compared")
    parser.add_argument("--cells", type=int, default=65536, help="tokens that the server whose memory is measured has room for")
    parser.add_argument("--memory-only", action="store_true", help="leave out all distances")
    parser.add_argument("--skip-server", action="store_true", help="leave out the server's own predictions")
    o = parser.parse_args()
    source = locate(o.model)
    vocabulary = source.text_config["vocab_size"]
    with Scratch() as work:
        (made,) = quantize_model(source, [parse("f16")], torch.ones(1, 8, dtype=torch.int64), work)
        held = {cache: memory(made.path, cache, o.cells) for cache in CACHES}
        for cache, found in held.items():
            print(json.dumps({"cache": cache, "cells": o.cells} | found | saved(found, held["f16"])), flush=True)
        for length in [] if o.memory_only else o.lengths:
            tokenizer, model = load_tokenizer(source), load(source)
            windows = read_windows(o.text, tokenizer, length, o.windows, None).windows
            quality = measure_each([cached_in(model, cache) for cache in CACHES], windows, model)
            for cache, one in zip(CACHES, quality):
                figures = {
                    "kl": one.kl,
                    "kl_stderr": one.kl_stderr,
                    "loss increase": one.loss_increase,
                    "p99": one.kl_p99,
                    "top1": one.top1,
                }
                print(json.dumps({"cache": cache, "length": length, "windows": len(windows)} | figures), flush=True)
            if o.skip_server:
                continue
            some = windows[:2]
            exact: list[Tensor] = []
            ends = [end for end in places(length, o.places) if end < length]
            ours = {cache: predictions(cached_in(model, cache), some, ends) for cache in CACHES}
            for cache in CACHES:
                theirs, speeds = served(made.path, cache, some, ends, vocabulary)
                exact = exact or theirs
                by_server = [distance(one, other) for one, other in zip(exact, theirs)]
                by_us = [distance(one, other) for one, other in zip(ours["f16"], ours[cache])]
                both = {"places": len(theirs), "server's KL": sum(by_server) / len(theirs), "our KL": sum(by_us) / len(theirs)}
                print(json.dumps({"cache": cache, "length": length} | both | speeds), flush=True)


if __name__ == "__main__":
    main()
