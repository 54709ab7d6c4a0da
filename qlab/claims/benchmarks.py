"""The tests of lesson 7's claims: speed, agreement, order of quality, small models, and what the guide's own table says."""

from __future__ import annotations

import math
from typing import Any

from qlab.claims.rules import (
    FAILS,
    HOLDS,
    SEVENTY,
    UNTESTABLE,
    Decided,
    Results,
    Test,
    beyond,
    nearer,
    of_this_run,
    worst,
)
from qlab.plan.capacity import q4_k_bytes
from qlab.plan.plan import GB, SHAPES, weight_bytes
from qlab.support.steady import steady
from qlab.support.wording import Sentence, joined, signed

GUIDE_TABLE = {"FP16": (3.12, 79.8), "AWQ": (3.21, 79.1), "GPTQ": (3.24, 78.9), "Q4_K_M": (3.19, 79.2), "NF4": (3.28, 78.5)}
"""The guide's own benchmark of a 70B: perplexity and MMLU (%), which two of its other claims can be held against."""
FOUR_BIT = ("autoawq-w4g128", "autogptq-w4g128", "llama.cpp's q4_k_m", "nf4")
"""What the guide's readers use: the libraries' own results, and NF4, which is bitsandbytes' to the byte."""
KINDS = {"code", "summary", "qa", "analysis"}  # of the guide's prompts
PROMPTS, SMALL = 500, 8e9  # of its benchmark; weights of a model that it calls 7B or less
CPU, GPU = "cpu", "cuda"


def speed_of(name: str, word: str, device: str) -> Test:
    """The claim on a format's generation on a `device`, CPU or GPU, held against the FP16 original there."""

    def decide(results: Results) -> Decided:
        own, original = fastest(results, name), fastest(results, "FP16 original")
        text = Sentence(
            "{name} generates {own:.1f} ± {own_sd:.1f} tokens/s in {runtime}, the original {other:.1f} ± {other_sd:.1f} in {beside}, "
            "on this machine",
            name=name, own=own["generation"], own_sd=own["generation_sd"], runtime=own["runtime"],
            other=original["generation"], other_sd=original["generation_sd"], beside=original["runtime"],
        )  # fmt: skip
        if {speed["conditions"]["device"] for speed in (own, original)} != {device}:
            return UNTESTABLE, without(text, device)
        error = math.hypot(own["generation_sd"], original["generation_sd"])
        return beyond(own["generation"] - original["generation"], error), text

    return Test(
        f"{word} is read as faster than the FP16 original, each in its fastest runtime, by more than twice the spread over the rounds; on "
        f"a {'CPU' if device == CPU else 'GPU'} alone",
        decide,
    )


def without(speeds: str, device: str) -> Sentence:
    """What was measured, where not both computed on the device that the claim is of."""
    if device == CPU:
        return Sentence("{speeds}; not both computed on a CPU, which the claim is of", speeds=speeds)
    return Sentence("{speeds}; not both computed on a GPU, which the claim is of", speeds=speeds)


def fastest(results: Results, name: str) -> dict[str, Any]:
    """The speeds of an artifact in the runtime here that generates fastest, of those whose rounds agree where some do."""
    speeds = [row["figures"]["speed"] for row in results["benchmarks"] if row["name"] == name and row["figures"]]
    if not speeds:
        raise KeyError(f"a speed of {name}")
    return max(speeds, key=lambda speed: (steady(speed["generation"], speed["generation_sd"]), speed["generation"]))


def nf4_on_cpu(results: Results) -> Decided:
    """A library that runs all layers there has kernels for them; with a part of them on a GPU it was not run."""
    speed = fastest(results, "NF4 by bitsandbytes")
    if speed["conditions"]["device"] != CPU:
        return UNTESTABLE, Sentence("bitsandbytes computed on a GPU here, and the claim is of a CPU")
    text = "bitsandbytes ran all layers on the CPU, at {speed:.0f} tok/s; some of them there and the others on a GPU were not run here"
    return FAILS, Sentence(text, speed=speed["generation"])


def in_ram(results: Results) -> Decided:
    """The size of the file, what llama.cpp holds a second time, and that this run's server had no layer on a GPU."""
    speed = fastest(results, "GGUF Q4_K_M")
    if speed["conditions"]["device"] != CPU:
        return UNTESTABLE, Sentence("llama.cpp computed on a GPU here, and the claim is of a CPU")
    shape = SHAPES[SEVENTY]
    size, twice = weight_bytes(shape, "GGUF Q4_K_M") / GB, q4_k_bytes(shape) / GB
    text = "a file of {size:.1f} GB for a 70B, of which llama.cpp holds {twice:.1f} GB a second time in RAM; here it had no layer on a GPU"
    return HOLDS, Sentence(text, size=size, twice=twice)


def alike(results: Results) -> Decided:
    """The share of tokens on which original and quantized model agree, with its binomial error."""
    verdicts, texts = [], []
    for name in (of_this_run(results, name) for name in FOUR_BIT):
        quality = results[f"quality/{name}"]
        verdicts.append(agrees(quality, 0.95))
        texts.append(Sentence("{name} {share:.1%}", name=name, share=quality["top1"]))
    return worst(verdicts), Sentence("same likeliest token: {shares}", shares=joined(", ", texts))


def agrees(quality: dict[str, Any], least: float) -> str:
    """Whether a share of likeliest tokens is at least so large; NOISE within twice its binomial error."""
    share = quality["top1"]
    return beyond(share - least, math.sqrt(share * (1 - share) / quality["tokens"]))


def ranking(results: Results) -> Decided:
    """AWQ nearest, NF4 farthest, GPTQ and Q4_K_M between; FAILS if a pair is the other way round beyond its error."""
    awq, gptq, gguf, nf4 = names = [of_this_run(results, name) for name in FOUR_BIT]
    pairs = [(awq, gptq), (awq, gguf), (gptq, nf4), (gguf, nf4)]
    verdict = worst([nearer(results, better, other)[0] for better, other in pairs])
    order = sorted(names, key=lambda name: results[f"quality/{name}"]["kl"])
    far = ", ".join(f"{name} {results[f'quality/{name}']['kl']:.5f}" for name in order)
    return verdict, Sentence("from nearest to farthest: {names}", names=far)


def small_models_lose(results: Results) -> Decided:
    """The loss by AutoGPTQ against its own error, on a model that is small."""
    quality, model = results[f"quality/{of_this_run(results, 'autogptq-w4g128')}"], results["model"]
    increase, error = quality["loss_increase"], quality["loss_increase_stderr"] or 0
    text = "{weights:.0f} M parameters: loss {increase} ± {error:.4f} nats/token (AutoGPTQ)"
    found = Sentence(text, weights=model["parameters"] / 1e6, increase=signed(increase, 4), error=error)
    if model["parameters"] > SMALL:
        return UNTESTABLE, Sentence("{found}; the claim is of models of 7B or less", found=found)
    return beyond(increase, error), found


def prompts_of_the_guide(results: Results) -> Decided:
    """The prompts that this run has answered, and those that lie in data/, by language and kind."""
    found = results["prompts"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found["kinds"].items()))
    languages = ", ".join(f"{count} {language}" for language, count in sorted(found["languages"].items()))
    values = {"count": found["count"], "kinds": kinds, "languages": languages, "answered": found["answered"]}
    text = Sentence("{count} prompts in data/: {kinds}; {languages}; this run answered {answered} of them", **values)
    if found["count"] < PROMPTS or {"fr", "en"} - set(found["languages"]) or KINDS - set(found["kinds"]):
        return FAILS, text
    if found["answered"] < PROMPTS:
        return UNTESTABLE, Sentence("{found}. Needs -p agreement_prompts {count}, and the time for it", found=text, count=PROMPTS)
    return HOLDS, text


def own_table(column: int, low: float, high: float) -> Decided:
    """The guide's claim on models of 13B and more against the guide's own table of a 70B."""
    before = GUIDE_TABLE["FP16"][column]
    changes = {name: row[column] - before for name, row in GUIDE_TABLE.items() if name != "FP16"}
    table = ", ".join(f"{name} {signed(change, 2)}" for name, change in changes.items())
    if all(low - 1e-9 <= change <= high + 1e-9 for change in changes.values()):
        text = "the guide's own table of a 70B: {table}: it agrees with itself. Needs a model of 13B or more to be measured"
        return UNTESTABLE, Sentence(text, table=table)
    return FAILS, Sentence("the guide's own table of a 70B: {table}: it contradicts itself", table=table)
